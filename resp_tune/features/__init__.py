"""Recordings become log-mel frames, and frames become batches."""
