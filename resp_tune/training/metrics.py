"""Compute metrics of class probabilities, in numpy, because trials compute them every epoch.

`labels`: int `[n]`; `probabilities`: float `[n, classes]`, rows sum to 1. A class without items is
left out of the macro averages, since its recall is undefined.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from resp_tune.common.choices import CYCLE_METRICS, METRIC_MODES, Mode

Labels = npt.NDArray[np.int64]
Probabilities = npt.NDArray[np.floating]
SMALLEST = float(np.finfo(np.float32).eps)  # probabilities are clipped to it before the logarithm


def confusion(labels: Labels, predicted: Labels, classes: int) -> npt.NDArray[np.int64]:
    """Return counts `[true class, predicted class]`."""
    flat = np.bincount(labels * classes + predicted, minlength=classes * classes)
    return flat.reshape(classes, classes)


def accuracy(labels: Labels, probabilities: Probabilities) -> float:
    """Return the share of items whose most probable class is the true one."""
    return float((probabilities.argmax(1) == labels).mean())


def balanced_accuracy(labels: Labels, probabilities: Probabilities) -> float:
    """Return the mean recall over the classes present."""
    matrix = _confusion(labels, probabilities)
    present = matrix.sum(1) > 0
    return float((matrix.diagonal()[present] / matrix.sum(1)[present]).mean())


def macro_f1(labels: Labels, probabilities: Probabilities) -> float:
    """Return the mean F1 = 2·TP / (2·TP + FP + FN) over the classes present."""
    matrix = _confusion(labels, probabilities)
    present = matrix.sum(1) > 0
    f1 = 2 * matrix.diagonal() / np.maximum(matrix.sum(0) + matrix.sum(1), 1)
    return float(f1[present].mean())


def mcc(labels: Labels, probabilities: Probabilities) -> float:
    """Return Matthews' correlation for several classes (Gorodkin's R_K), 0 if undefined."""
    matrix = _confusion(labels, probabilities).astype(np.float64)
    true, predicted, n = matrix.sum(1), matrix.sum(0), matrix.sum()
    below = math.sqrt((n**2 - (predicted**2).sum()) * (n**2 - (true**2).sum()))
    return float((matrix.trace() * n - true @ predicted) / below) if below > 0 else 0.0


def auroc(labels: Labels, probabilities: Probabilities) -> float:
    """Return the macro one-vs-rest area under the ROC curve (Mann–Whitney); 0.5 for one class."""
    areas = []
    for c in np.unique(labels):
        positive = labels == c
        n_pos, n_neg = positive.sum(), (~positive).sum()
        if n_neg:
            ranks = _ranks(probabilities[:, c])
            areas.append((ranks[positive].sum() - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg))
    return float(np.mean(areas)) if areas else 0.5


def _ranks(values: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    """Return ranks from 1; ties share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = counts.cumsum()
    means: npt.NDArray[np.float64] = (last - (counts - 1) / 2)[inverse]
    return means


def log_loss(labels: Labels, probabilities: Probabilities) -> float:
    """Return the mean −ln of the true class's probability."""
    chosen = probabilities[np.arange(len(labels)), labels]
    return float(-np.log(np.clip(chosen.astype(np.float64), SMALLEST, 1.0)).mean())


def sensitivity(labels: Labels, probabilities: Probabilities) -> float:
    """Return the pooled recall of all classes but 0, the normal one, or NaN without items."""
    return _recall_of(labels != 0, labels, probabilities)


def specificity(labels: Labels, probabilities: Probabilities) -> float:
    """Return the recall of class 0, the normal one, or NaN without items."""
    return _recall_of(labels == 0, labels, probabilities)


def icbhi_score(labels: Labels, probabilities: Probabilities) -> float:
    """Return (sensitivity + specificity) / 2 of the ICBHI 2017 challenge; class 0 is `normal`.

    A term without items is left out.
    """
    terms = (sensitivity(labels, probabilities), specificity(labels, probabilities))
    return float(np.nanmean(terms))


def _recall_of(
    chosen: npt.NDArray[np.bool_], labels: Labels, probabilities: Probabilities
) -> float:
    correct = probabilities[chosen].argmax(1) == labels[chosen]
    return float(correct.mean()) if len(correct) else math.nan


def _confusion(labels: Labels, probabilities: Probabilities) -> npt.NDArray[np.int64]:
    return confusion(labels, probabilities.argmax(1), probabilities.shape[1])


@dataclass(frozen=True)
class Metric:
    """A metric, the direction that is better, and its worst finite value."""

    compute: Callable[[Labels, Probabilities], float]
    mode: Mode
    worst: float


_WORST = {"mcc": -1.0, "log_loss": -math.log(SMALLEST)}  # 0 of all others
METRICS: dict[str, Metric] = {
    compute.__name__: Metric(
        compute, METRIC_MODES[compute.__name__], _WORST.get(compute.__name__, 0.0)
    )
    for compute in (
        macro_f1,
        balanced_accuracy,
        mcc,
        auroc,
        log_loss,
        accuracy,
        icbhi_score,
        sensitivity,
        specificity,
    )
}
CYCLE_CLASSES = ("normal", "crackle", "wheeze", "both")


def are_cycles(classes: Sequence[str]) -> bool:
    """Return whether `CYCLE_METRICS` are defined: a diagnosis may be named `normal` too."""
    return classes[0] == "normal" and set(classes) <= set(CYCLE_CLASSES)


def all_metrics(
    labels: Labels, probabilities: Probabilities, classes: tuple[str, ...]
) -> dict[str, float]:
    """Return every metric that the classes allow and that is defined for the labels."""
    cycles = are_cycles(classes)
    values = {
        name: metric.compute(labels, probabilities)
        for name, metric in METRICS.items()
        if name not in CYCLE_METRICS or cycles
    }
    return {name: value for name, value in values.items() if not math.isnan(value)}


def majority_accuracy(labels: Labels) -> float:
    """Return the accuracy of always predicting the most frequent class of `labels`."""
    return float(np.bincount(labels).max() / len(labels))
