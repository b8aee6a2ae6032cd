"""Decode recordings, find what is wrong with their sound, and find copies."""
