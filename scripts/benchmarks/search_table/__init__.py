"""The benchmark of the search itself: record a table of real trials, and replay searches on it."""
