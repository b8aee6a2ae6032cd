"""Respiratory sounds and a cohort made by rule, for runs and tests that need no download."""
