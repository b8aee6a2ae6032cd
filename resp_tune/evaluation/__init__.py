"""Measure what a model is worth on a split, beside baselines.

A table of predictions has one row a clip: side (its split), recording, start (s), patient, device,
label, predicted and p_<class> for every class.
"""
