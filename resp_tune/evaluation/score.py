"""Predict the splits with a winner and compute metrics of its predictions.

Metrics are by clip, session and patient, of each class and within each device.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from resp_tune.common.choices import CYCLE_METRICS, LEVELS, METRIC_NAMES, at_level
from resp_tune.config import TrialConfig
from resp_tune.evaluation.baselines import is_controlled
from resp_tune.evaluation.bootstrap import bootstrap, intervals
from resp_tune.features.batches import ClipIndex
from resp_tune.features.cache import FeatureCaches
from resp_tune.features.pooled_clips import PooledClips
from resp_tune.training.datamodule import ClipLabels, DataModule, prediction_table
from resp_tune.training.metrics import (
    SMALLEST,
    Labels,
    Probabilities,
    all_metrics,
    majority_accuracy,
    pool,
)
from resp_tune.training.model_bundle import OPERATING_POINT, Bundle

HEALTHY = "Healthy"
OPTIMISED = "icbhi_score"  # the metric for which an operating point is chosen
# These make sense for a few clips of few classes; the others need all classes.
SUBSET_METRICS = ("macro_f1", "balanced_accuracy", "accuracy", *CYCLE_METRICS)


@dataclass(frozen=True)
class TestScore:
    """Predictions of the test split and their metrics; `by_seed` is of each seed of each trial.

    `plain_by_seed` is without the model's operating point, as scores of trials are. `unmoved` are
    the metrics without it, if the model has one.
    """

    metrics: dict[str, float]
    by_seed: dict[str, list[float]]
    majority: float
    intervals: dict[str, list[float]]
    predictions: pd.DataFrame
    plain_by_seed: dict[str, list[float]]
    unmoved: dict[str, float] | None = None


def predict_validation_split(
    bundle: Bundle, datamodule: DataModule, caches: FeatureCaches
) -> tuple[pd.DataFrame, dict[str, float]]:
    """Return predictions of each fold's networks, one a seed, for the fold's validation split.

    With them comes each metric, the mean over the folds. Nothing is augmented, so with the preset
    `notebook` they differ a little from the trial's own.
    """
    folds, classes = datamodule.folds(), bundle.classes
    parts, metrics = [], []
    for n, fold in enumerate(folds):
        best, *others = (replace(m, networks=m.networks[n :: len(folds)]) for m in bundle.members)
        own, clips = replace(bundle, networks=best.networks, others=tuple(others)), fold.validation
        probabilities = own.predict_clips(partial(_load, clips, caches, 1))
        parts.append(prediction_table("validation", clips, classes, probabilities))
        metrics.append(all_metrics(clips.label, probabilities, classes, clips.groups()))
    shared = [name for name in metrics[0] if all(name in found for found in metrics)]
    means = {name: statistics.fmean(found[name] for found in metrics) for name in shared}
    return pd.concat(parts, ignore_index=True), means


def _load(
    clips: ClipLabels, caches: FeatureCaches, workers: int, config: TrialConfig
) -> ClipIndex | PooledClips:
    """Return `clips` as networks of `config` take them."""
    return clips.load(caches, config, workers=workers).clips


def operating_point(
    validation: pd.DataFrame, classes: Sequence[str], metric: str
) -> dict[str, float]:
    """Return log offsets by class, chosen on predictions of the validation split.

    Only for the ICBHI score, which weighs one class as much as all others; else there are none.
    Training with class balance, or without, puts the operating point where the loss wants it.
    Moving it afterwards is known as threshold moving (Provost, 2000).
    """
    labels, probabilities = labels_and_probabilities(validation, classes)
    if metric != OPTIMISED or not 0 < np.count_nonzero(labels) < len(labels):
        return {}
    return {classes[0]: choose_normal_offset(labels, probabilities)}


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


def score_test_split(
    bundle: Bundle, datamodule: DataModule, caches: FeatureCaches, *, workers: int
) -> TestScore:
    """Score the bundle on the test split, which is decoded here and not before.

    `caches` are of its recordings; raises `RunError` if one has changed since it was hashed.
    """
    classes, stems = bundle.classes, datamodule.split.test or ()
    clips = datamodule.clip_labels(stems, stems)
    caches.fill(bundle.front_ends, workers=workers)  # of all members, in as few passes as possible
    each = bundle.predict_each(partial(_load, clips, caches, workers))
    labels, groups, folds = clips.label, clips.groups(), len(datamodule.split.folds)
    table = prediction_table("test", clips, classes, bundle.combine(each))
    metrics, spans = metrics_by_level(table, datamodule)

    def score_seeds(model: Bundle) -> dict[str, list[float]]:
        found = [
            all_metrics(labels, model.combine(each[start : start + folds]), classes, groups)
            for start in range(0, len(each), folds)
        ]
        return {name: [values[name] for values in found] for name in metrics}

    by_seed, majority = score_seeds(bundle), majority_accuracy(labels)
    if not bundle.details.get(OPERATING_POINT):
        return TestScore(metrics, by_seed, majority, spans, table, by_seed)
    plain = replace(bundle, details={})
    unmoved = all_metrics(labels, plain.combine(each), classes)
    return TestScore(metrics, by_seed, majority, spans, table, score_seeds(plain), unmoved)


def metrics_by_level(
    table: pd.DataFrame, datamodule: DataModule
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """Return the metrics of predictions at each level, and their patient-bootstrap intervals."""
    classes, metrics, spans = datamodule.split.classes, dict[str, float](), dict[str, list[float]]()
    for level, rows in {LEVELS[0]: table, **pool_tables(table, datamodule)}.items():
        own = metrics_with_intervals(rows, classes)
        metrics |= {at_level(name, level): own[name] for name in METRIC_NAMES if name in own}
        spans |= {at_level(name, level): span for name, span in own["intervals"].items()}
    return metrics, spans


def group_metrics(table: pd.DataFrame, datamodule: DataModule) -> dict[str, Any]:
    """Return `{per_class, by_session, by_patient, by_device, controlled}` of one split.

    `controlled` is of children on the Meditron, healthy or sick, and None if either is missing.
    A cycle's class is not its patient's, so for cycles `by_session`, `by_patient` and `controlled`
    are None.
    """
    classes = datamodule.split.classes
    by_recording = datamodule.clips.task.unit == "recording"
    pooled = pool_tables(table, datamodule)
    return {
        "per_class": _per_class(table, pooled.get("patient"), classes),
        **{
            f"by_{level}": metrics_with_intervals(pooled[level], classes) if pooled else None
            for level in LEVELS[1:]
        },
        "by_device": {
            str(name): metrics_with_intervals(own, classes, SUBSET_METRICS)
            for name, own in table.groupby("device", sort=True)
        },
        "controlled": _controlled(table, datamodule) if by_recording else None,
    }


def metrics_with_intervals(
    table: pd.DataFrame, classes: Sequence[str], names: Sequence[str] | None = None
) -> dict[str, Any]:
    """Return metrics of predictions with 95 % patient-bootstrap intervals.

    `names` are the metrics, by default all. The returned `classes` are those that the clips have;
    the others are left out of the macro averages. A single patient has no intervals.
    """
    labels, probabilities = labels_and_probabilities(table, classes)
    metrics = all_metrics(labels, probabilities, tuple(classes))
    chosen = [name for name in metrics if names is None or name in names]
    patients = list(table["patient"])
    several = len(set(patients)) > 1  # the resamples of one are all the same
    samples = bootstrap(labels, probabilities, patients, names=chosen) if several else {}
    return {
        "clips": len(table),
        "patients": len(set(patients)),
        "classes": [name for i, name in enumerate(classes) if i in labels],
        **{name: metrics[name] for name in chosen},
        "majority_accuracy": majority_accuracy(labels),
        "intervals": {name: list(span) for name, span in intervals(samples).items()},
    }


def labels_and_probabilities(
    table: pd.DataFrame, classes: Sequence[str]
) -> tuple[Labels, Probabilities]:
    """Return labels `[clips]` as indices of `classes`, and probabilities `[clips, classes]`."""
    index = {name: i for i, name in enumerate(classes)}
    labels: Labels = np.array([index[name] for name in table["label"]], dtype=np.int64)
    probabilities: Probabilities = table[[f"p_{name}" for name in classes]].to_numpy(np.float64)
    return labels, probabilities


def pool_tables(table: pd.DataFrame, datamodule: DataModule) -> dict[str, pd.DataFrame]:
    """Return predictions of sessions and of patients, by level, from those of their recordings.

    A row has the mean log-probability, as `pool` does. Cycles have neither.
    """
    if datamodule.clips.task.unit != "recording":
        return {}
    session_of = {r.stem: r.session for r in datamodule.dataset.recordings}
    groups = {"session": table["recording"].map(session_of), "patient": table["patient"]}
    classes = datamodule.split.classes
    labels, probabilities = labels_and_probabilities(table, classes)
    tables = {}
    for level, names in groups.items():
        _, first, group = np.unique(names.to_numpy(str), return_index=True, return_inverse=True)
        label, pooled = pool(labels, probabilities, group)
        own = {
            "patient": table["patient"].to_numpy()[first],
            "label": np.array(classes)[label],
            "predicted": np.array(classes)[pooled.argmax(1)],
        }
        tables[level] = pd.DataFrame(own | {f"p_{c}": pooled[:, i] for i, c in enumerate(classes)})
    return tables


def _per_class(
    table: pd.DataFrame, patients: pd.DataFrame | None, classes: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Return recall, precision and support of clips, and recall of patients, by class."""
    rows: dict[str, dict[str, Any]] = {}
    for name in classes:
        own, predicted = table["label"] == name, table["predicted"] == name
        rows[name] = {
            "recall": _share(predicted[own]),
            "precision": _share(own[predicted]),
            "support": int(own.sum()),
            "patients": int(table[own]["patient"].nunique()),
        }
        if patients is not None:
            correct = patients["predicted"] == name
            rows[name]["patient_recall"] = _share(correct[patients["label"] == name])
    return rows


def _share(hits: pd.Series[bool]) -> float | None:
    return float(hits.mean()) if len(hits) else None


def _controlled(table: pd.DataFrame, datamodule: DataModule) -> dict[str, Any] | None:
    """Return metrics of healthy or sick among the split's children on the Meditron.

    None for a task without a class of the healthy alone, or if only healthy or sick are there.
    """
    grouping = datamodule.clips.task.grouping
    well = next((c for c in datamodule.split.classes if grouping[c] == [HEALTHY]), None)
    if well is None:
        return None
    children = {r.stem for r in datamodule.dataset.recordings if is_controlled(r)}
    chosen = table[table["recording"].isin(children)]
    healthy = chosen["label"] == well
    if not 0 < healthy.sum() < len(chosen):
        return None
    probability = chosen[f"p_{well}"]
    two = pd.DataFrame(
        {
            "patient": chosen["patient"],
            "label": np.where(healthy, "healthy", "sick"),
            "p_healthy": probability,
            "p_sick": 1 - probability,
        }
    )
    return metrics_with_intervals(two, ("healthy", "sick"), (*SUBSET_METRICS, "auroc"))
