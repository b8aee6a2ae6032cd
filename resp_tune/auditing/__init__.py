"""The audit: what a data set holds, hides and gives away, and how a model does on its test side."""
