"""Derive seeds from seeds."""

from __future__ import annotations

import numpy as np


def mix_seed(*parts: int) -> int:
    """Return a seed below 2⁶³ for each combination of `parts`, the same on every machine."""
    words = [word % 2**32 for part in parts for word in (part, part >> 32)]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))
