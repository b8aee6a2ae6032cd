"""Estimate how much metrics vary with the patients, by a bootstrap over them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from resp_tune.common.choices import METRIC_NAMES
from resp_tune.training.metrics import (
    Floats,
    Labels,
    Probabilities,
    compute_metrics,
    weighted_metrics,
)

DRAWS = 2000  # resamples


def bootstrap(
    labels: Labels,
    probabilities: Probabilities,
    patients: Sequence[str],
    *,
    draws: int = DRAWS,
    seed: int = 0,
    names: Collection[str] = METRIC_NAMES,
) -> dict[str, Floats]:
    """Return the metrics `names` on `draws` resamples of the patients, each float `[draws]`.

    Patients are drawn with replacement, with all their clips. As in the metrics themselves, a class
    without a drawn clip is left out of the averages; a metric that a draw leaves undefined is NaN.
    The same patients and seed give the same resamples, so that two models on the same clips can be
    compared draw by draw.
    """
    unique, of_clip = np.unique(np.asarray(patients), return_inverse=True)
    rng = np.random.default_rng(seed)
    drawn = rng.integers(len(unique), size=(draws, len(unique)))
    weight = np.zeros((draws, len(unique)))
    np.add.at(weight, (np.arange(draws)[:, None], drawn), 1.0)
    return weighted_metrics(labels, probabilities, of_clip, weight, names)


def paired_differences(
    labels: Labels,
    probabilities: Probabilities,
    others: Sequence[Probabilities],
    patients: Sequence[str],
    names: Collection[str],
) -> dict[str, dict[str, Any]]:
    """Return `{name: {a, b, difference, interval}}` of a model, a, and the mean of `others`, b.

    `difference` is a − b on the same clips. `interval` is the central 95 % of the differences on
    the same resamples, [low, high], or None for a single patient, whose resamples are all the same.
    """
    a = compute_metrics(labels, probabilities, names)
    each = [compute_metrics(labels, other, names) for other in others]
    b = {name: float(np.mean([one[name] for one in each])) for name in names}
    drawn, *drawn_b = (
        bootstrap(labels, p, patients, names=names) for p in (probabilities, *others)
    )
    spans = intervals({n: drawn[n] - np.mean([d[n] for d in drawn_b], axis=0) for n in names})
    return {
        name: {
            "a": a[name],
            "b": b[name],
            "difference": a[name] - b[name],
            "interval": list(spans[name]) if len(set(patients)) > 1 else None,
        }
        for name in names
    }


def intervals(samples: dict[str, Floats], *, level: float = 0.95) -> dict[str, tuple[float, float]]:
    """Return the central `level` of each metric's resamples, as (low, high)."""
    tail = (1 - level) / 2
    return {
        name: (float(np.nanquantile(v, tail)), float(np.nanquantile(v, 1 - tail)))
        for name, v in samples.items()
    }
