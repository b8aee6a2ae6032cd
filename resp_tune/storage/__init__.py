"""A search's files in an object store."""
