"""Report what a data set gives away: defects, leaks, shortcuts."""
