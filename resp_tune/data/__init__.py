"""Read recordings from files, cut them into labelled clips, and split them by patient."""
