"""Measure what a model is worth on a split, beside baselines without audio."""
