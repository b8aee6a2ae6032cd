"""Networks that are trained on frames: built in, or of an installed package."""
