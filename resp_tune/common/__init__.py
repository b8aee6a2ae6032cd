"""Paths, text, YAML and names that every package shares; imports none of them."""
