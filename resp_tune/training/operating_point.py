"""Choose the operating point of a model on its validation predictions, and apply it.

An operating point adds a constant to the log-probability of a class before the most probable one
is predicted. Training with class balance, or without, puts it where the loss wants it; the ICBHI
score, which weighs normal cycles as much as all others together, may want it elsewhere. Moving it
afterwards is known as threshold moving (Provost, 2000).
"""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from resp_tune.training.metrics import SMALLEST, Floats, Labels, Probabilities

LARGEST = 1000.0  # offset: far more than the logarithm of the smallest probability
METRIC = "icbhi_score"  # the metric for which an operating point is chosen


def choose_normal_offset(labels: Labels, probabilities: Probabilities) -> float:
    """Return what to add to the log-probability of class 0 for the highest ICBHI score.

    `labels` is `[n]`, with class 0 and others among them; `probabilities` is `[n, classes]`. Every
    offset that gives another score is tried; of several with the highest one, the smallest change.
    """
    logs = np.log(np.clip(probabilities.astype(np.float64), SMALLEST, 1.0))
    needed = logs[:, 1:].max(1) - logs[:, 0]  # from this offset on, class 0 is predicted
    right_otherwise = logs[:, 1:].argmax(1) + 1 == labels
    normal = labels == 0
    steps = np.unique(needed)
    between = (steps[1:] + steps[:-1]) / 2
    offsets = np.concatenate([between, [0.0, steps[0] - 1.0, steps[-1] + 1.0]])
    hits, kept = np.sort(needed[normal]), np.sort(needed[~normal & right_otherwise])
    specificity = np.searchsorted(hits, offsets, side="right") / len(hits)
    sensitivity = 1 - np.searchsorted(kept, offsets, side="right") / max(len(kept), 1)
    sensitivity *= len(kept) / (~normal).sum()
    score = ((specificity + sensitivity) / 2).round(12)
    best = offsets[score == score.max()]
    return float(best[np.abs(best).argmin()])


def log_offsets(point: Mapping[str, float], classes: Sequence[str]) -> Floats:
    """Return the offsets `[classes]` of an operating point, which names classes.

    Raises `ValueError` for a class that is not there, and for an offset that is not a number from
    -1000 to 1000.
    """
    if unknown := sorted(set(point) - set(classes)):
        raise ValueError(f"operating_point names {unknown[0]!r}, which is not a class")
    for name, value in point.items():
        if not isinstance(value, float | int) or not -LARGEST <= value <= LARGEST:
            raise ValueError(f"operating_point: {reprlib.repr(value)} of {name!r} is no offset")
    return np.array([float(point.get(name, 0.0)) for name in classes])


def move(probabilities: npt.NDArray[np.float32], offsets: Floats) -> npt.NDArray[np.float32]:
    """Return `probabilities` `[…, classes]` at the operating point of `offsets` `[classes]`."""
    if not offsets.any():
        return probabilities
    # The largest factor is 1, so that none overflows.
    moved = probabilities.astype(np.float64) * np.exp(offsets - offsets.max())
    total = moved.sum(-1, keepdims=True)
    shares = np.divide(moved, total, out=probabilities.astype(np.float64), where=total > 0)
    result: npt.NDArray[np.float32] = shares.astype(np.float32)
    return result
