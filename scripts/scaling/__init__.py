"""Measure what a search costs besides training, and simulate searches on many GPUs from it."""
