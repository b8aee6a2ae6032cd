"""Validate, run and finish a whole search."""
