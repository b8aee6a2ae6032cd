"""The measurements behind `scripts/benchmark.py`, one idea a module."""
