"""Pages made from the files of a finished search."""
