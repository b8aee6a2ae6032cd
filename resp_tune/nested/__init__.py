"""Nested searches: a search for each outer fold, then one over all patients."""
