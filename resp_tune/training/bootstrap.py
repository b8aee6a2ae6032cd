"""Bootstrap metrics over patients: how would they vary with other patients?"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from resp_tune.training.metrics import METRICS, SMALLEST, Labels, Probabilities, all_metrics

DRAWS = 2000
Floats = npt.NDArray[np.float64]


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
    classes = probabilities.shape[1]
    matrices = _confusions(labels, probabilities, of_clip, len(unique), classes)
    samples = _from_confusion(np.einsum("dp,pij->dij", weight, matrices, optimize=True))
    for name, compute in (("auroc", _auroc), ("log_loss", _log_loss)):
        if name in names:
            samples[name] = compute(labels, probabilities, of_clip, weight)
    return {name: samples[name] for name in names}


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


def _confusions(
    labels: Labels, probabilities: Probabilities, of_clip: Labels, patients: int, classes: int
) -> Floats:
    """Return each patient's confusion matrix, `[patients, classes, classes]`."""
    flat = (of_clip * classes + labels) * classes + probabilities.argmax(1)
    counts = np.bincount(flat, minlength=patients * classes * classes)
    return counts.reshape(patients, classes, classes).astype(np.float64)


def _from_confusion(matrix: Floats) -> dict[str, Floats]:
    """Return metrics of confusion matrices `[draws, classes, classes]`."""
    hits = np.einsum("dii->di", matrix)
    true, predicted = matrix.sum(2), matrix.sum(1)
    n = true.sum(1)
    present = true > 0
    recall = np.divide(hits, true, out=np.zeros_like(hits), where=present)
    f1 = 2 * hits / np.maximum(true + predicted, 1)
    normal, abnormal = true[:, 0], n - true[:, 0]
    specificity, sensitivity = (
        np.divide(correct, of, out=np.full_like(n, np.nan), where=of > 0)
        for correct, of in ((hits[:, 0], normal), (hits[:, 1:].sum(1), abnormal))
    )
    spread = np.sqrt((n**2 - (predicted**2).sum(1)) * (n**2 - (true**2).sum(1)))
    covariance = hits.sum(1) * n - (true * predicted).sum(1)
    return {
        "macro_f1": _mean(f1, present),
        "balanced_accuracy": _mean(recall, present),
        "mcc": np.divide(covariance, spread, out=np.zeros_like(n), where=spread > 0),
        "accuracy": hits.sum(1) / n,
        "icbhi_score": np.nanmean([sensitivity, specificity], axis=0),
        "sensitivity": sensitivity,
        "specificity": specificity,
    }


def _mean(values: Floats, present: npt.NDArray[np.bool_]) -> Floats:
    mean: Floats = (values * present).sum(1) / present.sum(1)
    return mean


def _auroc(labels: Labels, probabilities: Probabilities, of_clip: Labels, weight: Floats) -> Floats:
    """Return the macro one-vs-rest area of each draw; ties count half, by their mean rank.

    An area is the share of pairs, a clip of the class and one of the rest, in the right order. They
    are counted once for each pair of patients, which serves all draws.
    """
    total, counted = np.zeros(len(weight)), np.zeros(len(weight))
    patients = weight.shape[1]
    for c in np.unique(labels):
        values, group = np.unique(probabilities[:, c], return_inverse=True)
        positive = labels == c
        rest = np.zeros((len(values), patients))
        np.add.at(rest, (group[~positive], of_clip[~positive]), 1.0)
        below = (rest.cumsum(0) - rest / 2)[group[positive]]
        in_order = np.zeros((patients, patients))
        np.add.at(in_order, of_clip[positive], below)
        n_pos, n_rest = (
            weight @ np.bincount(of_clip[chosen], minlength=patients)
            for chosen in (positive, ~positive)
        )
        defined = (n_pos > 0) & (n_rest > 0)
        pairs = n_pos * n_rest
        ordered = (weight @ in_order * weight).sum(1)
        area = np.divide(ordered, pairs, out=np.zeros_like(pairs), where=defined)
        total, counted = total + area, counted + defined
    return np.divide(total, counted, out=np.full_like(total, 0.5), where=counted > 0)


def _log_loss(
    labels: Labels, probabilities: Probabilities, of_clip: Labels, weight: Floats
) -> Floats:
    chosen = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    losses = -np.log(np.clip(chosen, SMALLEST, 1.0))
    sums, counts = (np.bincount(of_clip, w, weight.shape[1]) for w in (losses, None))
    loss: Floats = (weight @ sums) / (weight @ counts)
    return loss
