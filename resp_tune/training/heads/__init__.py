"""Heads: small classifiers that are trained on the pooled features of a frozen encoder."""
