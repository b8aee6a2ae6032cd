"""A whole search: from checked settings to a winner, its test, and the files about it."""
