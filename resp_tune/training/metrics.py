"""Compute metrics of class probabilities, and bootstrap them: how would other patients change them?

In numpy, because trials compute them every epoch.

`labels`: int `[n]`; `probabilities`: float `[n, classes]`, rows sum to 1. A class without items is
left out of the macro averages, since its recall is undefined. Each metric is defined once, for many
weightings of groups of items at a time: a bootstrap weights patients by how often they are drawn.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from resp_tune.common.choices import CYCLE_METRICS, METRIC_MODES, METRIC_NAMES, Mode, at_level

Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
Probabilities = npt.NDArray[np.floating]
SMALLEST = float(np.finfo(np.float32).eps)  # probabilities are clipped to it before the logarithm
CYCLE_CLASSES = ("normal", "crackle", "wheeze", "both")


@dataclass(frozen=True)
class Metric:
    """The direction of a metric that is better, and its worst finite value."""

    mode: Mode
    worst: float


_WORST = {"mcc": -1.0, "log_loss": -math.log(SMALLEST)}  # 0 of all others
# By key: a name, or a name at the level of a session or patient.
METRICS = {
    key: Metric(mode, next((w for name, w in _WORST.items() if key.endswith(name)), 0.0))
    for key, mode in METRIC_MODES.items()
}


def all_metrics(
    labels: Labels,
    probabilities: Probabilities,
    classes: tuple[str, ...],
    groups: Mapping[str, Labels] | None = None,
) -> dict[str, float]:
    """Return every metric that the classes allow and that is defined for the labels.

    `groups` holds the number of each item's session and patient, by level: with it the metrics
    of sessions and patients are returned as well, by the key of `at_level`. A breathing cycle has
    another label than the next one, so cycles have no other level.
    """
    cycles = are_cycles(classes)
    names = [n for n in METRIC_NAMES if n not in CYCLE_METRICS or cycles]
    values = compute_metrics(labels, probabilities, names)
    for level, group in ({} if cycles else groups or {}).items():
        pooled = compute_metrics(*pool(labels, probabilities, group), names)
        values |= {at_level(name, level): value for name, value in pooled.items()}
    return {name: value for name, value in values.items() if not math.isnan(value)}


def pool(
    labels: Labels, probabilities: Probabilities, group: Labels
) -> tuple[Labels, Probabilities]:
    """Return the label `[groups]` and the probabilities `[groups, classes]` of groups of items.

    The probabilities have the mean logarithm of those of the items, all of which have one label.
    """
    _, first, own, count = np.unique(
        group, return_index=True, return_inverse=True, return_counts=True
    )
    logarithms = np.log(np.clip(probabilities.astype(np.float64), SMALLEST, 1.0))
    sums = np.zeros((len(count), probabilities.shape[1]))
    np.add.at(sums, own, logarithms)
    pooled = np.exp(sums / count[:, None])
    return labels[first], pooled / pooled.sum(1, keepdims=True)


def are_cycles(classes: Sequence[str]) -> bool:
    """Return whether `CYCLE_METRICS` are defined: a diagnosis may be named `normal` too."""
    return classes[0] == "normal" and set(classes) <= set(CYCLE_CLASSES)


def majority_accuracy(labels: Labels) -> float:
    """Return the accuracy of always predicting the most frequent class of `labels`."""
    return float(np.bincount(labels).max() / len(labels))


def compute_metrics(
    labels: Labels, probabilities: Probabilities, names: Collection[str]
) -> dict[str, float]:
    """Return the metrics `names`, NaN if undefined for the labels."""
    one_group = np.zeros(len(labels), dtype=np.int64)
    values = weighted_metrics(labels, probabilities, one_group, np.ones((1, 1)), names)
    return {name: float(value[0]) for name, value in values.items()}


def weighted_metrics(
    labels: Labels,
    probabilities: Probabilities,
    group: Labels,
    weight: Floats,
    names: Collection[str],
) -> dict[str, Floats]:
    """Return the metrics `names` for each weighting of the groups, float `[draws]`.

    `group` `[n]` is the group of each item, `weight` `[draws, groups]` how often a group counts.
    """
    groups, classes = weight.shape[1], probabilities.shape[1]
    flat = (group * classes + labels) * classes + probabilities.argmax(1)
    counts = np.bincount(flat, minlength=groups * classes * classes)
    by_group = counts.reshape(groups, classes, classes).astype(np.float64)
    values = _confusion_metrics(np.einsum("dg,gij->dij", weight, by_group, optimize=True))
    of_probabilities = (
        ("auroc", _auroc),
        ("log_loss", _log_loss),
        ("balanced_log_loss", _balanced_log_loss),
    )
    for name, compute in of_probabilities:
        if name in names:
            values[name] = compute(labels, probabilities, group, weight)
    return {name: values[name] for name in names}


def _confusion_metrics(matrix: Floats) -> dict[str, Floats]:
    """Return metrics of confusion matrices `[draws, true class, predicted class]`.

    F1 = 2·TP / (2·TP + FP + FN). `mcc` is Matthews' correlation for several classes (Gorodkin's
    R_K), 0 if undefined. `icbhi_score` is that of the ICBHI 2017 challenge, where class 0 is
    `normal`: the mean of `specificity`, its recall, and `sensitivity`, the pooled recall of all
    others. A term without items is left out of it and NaN itself.
    """
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
        "macro_f1": (f1 * present).sum(1) / present.sum(1),
        "balanced_accuracy": recall.sum(1) / present.sum(1),
        "mcc": np.divide(covariance, spread, out=np.zeros_like(n), where=spread > 0),
        "accuracy": hits.sum(1) / n,
        "icbhi_score": np.nanmean([sensitivity, specificity], axis=0),
        "sensitivity": sensitivity,
        "specificity": specificity,
    }


def _auroc(labels: Labels, probabilities: Probabilities, group: Labels, weight: Floats) -> Floats:
    """Return the macro one-vs-rest area under the ROC curve (Mann–Whitney); 0.5 for one class.

    An area is the share of pairs, an item of the class and one of the rest, in the right order;
    ties count half. They are counted once for each pair of groups, which serves all weightings.
    """
    total, counted = np.zeros(len(weight)), np.zeros(len(weight))
    groups = weight.shape[1]
    for c in np.unique(labels):
        values, rank = np.unique(probabilities[:, c], return_inverse=True)
        positive = labels == c
        rest = np.zeros((len(values), groups))
        np.add.at(rest, (rank[~positive], group[~positive]), 1.0)
        below = (rest.cumsum(0) - rest / 2)[rank[positive]]
        in_order = np.zeros((groups, groups))
        np.add.at(in_order, group[positive], below)
        n_pos, n_rest = (
            weight @ np.bincount(group[chosen], minlength=groups)
            for chosen in (positive, ~positive)
        )
        pairs = n_pos * n_rest
        ordered = (weight @ in_order * weight).sum(1)
        total += np.divide(ordered, pairs, out=np.zeros_like(pairs), where=pairs > 0)
        counted += pairs > 0
    return np.divide(total, counted, out=np.full_like(total, 0.5), where=counted > 0)


def _log_loss(
    labels: Labels, probabilities: Probabilities, group: Labels, weight: Floats
) -> Floats:
    """Return the mean −ln of the true class's probability."""
    losses = _losses(labels, probabilities)
    sums, counts = (np.bincount(group, w, weight.shape[1]) for w in (losses, None))
    loss: Floats = (weight @ sums) / (weight @ counts)
    return loss


def _balanced_log_loss(
    labels: Labels, probabilities: Probabilities, group: Labels, weight: Floats
) -> Floats:
    """Return the log loss in which each class weighs the same, a class without items nothing."""
    losses, shape = _losses(labels, probabilities), (weight.shape[1], probabilities.shape[1])
    cell = group * shape[1] + labels
    sums, counts = (
        weight @ np.bincount(cell, w, shape[0] * shape[1]).reshape(shape) for w in (losses, None)
    )
    present = counts > 0
    means = np.divide(sums, counts, out=np.zeros_like(sums), where=present)
    loss: Floats = means.sum(1) / present.sum(1)
    return loss


def _losses(labels: Labels, probabilities: Probabilities) -> Floats:
    """Return −ln of the true class's probability of each item, float `[n]`."""
    chosen = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    losses: Floats = -np.log(np.clip(chosen, SMALLEST, 1.0))
    return losses
