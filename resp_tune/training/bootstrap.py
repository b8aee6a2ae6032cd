"""Bootstrap metrics over patients: how would they vary with other patients?"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from resp_tune.training.metrics import (
    METRICS,
    Floats,
    Labels,
    Probabilities,
    all_metrics,
    weighted_metrics,
)

DRAWS = 2000


def bootstrap(
    labels: Labels,
    probabilities: Probabilities,
    patients: Sequence[str],
    *,
    draws: int = DRAWS,
    seed: int = 0,
    names: Collection[str] = METRICS.keys(),
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
    a: Probabilities,
    b: Probabilities,
    patients: Sequence[str],
    classes: tuple[str, ...],
) -> dict[str, tuple[float, float, float]]:
    """Return each metric of `a` minus that of `b` on the same clips, as (difference, low, high).

    `low` and `high` enclose the central 95 % of the differences on the same resamples.
    """
    of_a, of_b = (all_metrics(labels, p, classes) for p in (a, b))
    drawn_a, drawn_b = (bootstrap(labels, p, patients, names=of_a) for p in (a, b))
    spans = intervals({name: drawn_a[name] - drawn_b[name] for name in of_a})
    return {name: (of_a[name] - of_b[name], *spans[name]) for name in of_a}


def intervals(samples: dict[str, Floats], *, level: float = 0.95) -> dict[str, tuple[float, float]]:
    """Return the central `level` of each metric's resamples, as (low, high)."""
    tail = (1 - level) / 2
    return {
        name: (float(np.nanquantile(v, tail)), float(np.nanquantile(v, 1 - tail)))
        for name, v in samples.items()
    }
