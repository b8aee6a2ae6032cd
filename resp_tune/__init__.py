"""resp_tune: hyperparameter search for classifying respiratory sounds."""

from __future__ import annotations

__version__ = "0.1.0"
