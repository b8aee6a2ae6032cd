"""Figures of predictions: by clip, by patient, of each class, within each device.

A frame of predictions has one row a clip: side, recording, patient, device, label, predicted and
p_<class> of every class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from resp_tune.evaluation.baselines import is_controlled
from resp_tune.training.bootstrap import bootstrap, intervals
from resp_tune.training.datamodule import DataModule
from resp_tune.training.metrics import (
    CYCLE_METRICS,
    Labels,
    Probabilities,
    all_metrics,
    majority_accuracy,
)

HEALTHY = "Healthy"
# What a few clips of few classes still bear; the rest needs all classes to mean anything.
SUBSET_METRICS = ("macro_f1", "balanced_accuracy", "accuracy", *CYCLE_METRICS)


def group_metrics(frame: pd.DataFrame, datamodule: DataModule) -> dict[str, Any]:
    """`{per_class, by_patient, by_device, controlled}` of one side of `datamodule`.

    A cycle's class is not its patient's, so `by_patient` and `controlled` are None for cycles;
    `controlled` also where the side does not hold both healthy and sick of those children.
    """
    classes = datamodule.split.classes
    by_recording = datamodule.clips.task.unit == "recording"
    people = _people(frame, classes) if by_recording else None
    return {
        "per_class": _per_class(frame, people, classes),
        "by_patient": None if people is None else metrics_with_intervals(people, classes),
        "by_device": {
            str(name): metrics_with_intervals(own, classes, SUBSET_METRICS)
            for name, own in frame.groupby("device", sort=True)
        },
        "controlled": _controlled(frame, datamodule) if by_recording else None,
    }


def metrics_with_intervals(
    frame: pd.DataFrame, classes: Sequence[str], names: Sequence[str] | None = None
) -> dict[str, Any]:
    """Metrics of predictions with 95 % patient-bootstrap intervals, beside the majority rate.

    `names` chooses metrics, None: all. `classes` of the answer are those that the clips have; the
    others are left out of the macro averages. One patient alone has no intervals.
    """
    labels, probabilities = labels_and_probabilities(frame, classes)
    metrics = all_metrics(labels, probabilities, tuple(classes))
    chosen = [name for name in metrics if names is None or name in names]
    patients = list(frame["patient"])
    several = len(set(patients)) > 1
    samples = bootstrap(labels, probabilities, patients, names=chosen) if several else {}
    return {
        "clips": len(frame),
        "patients": len(set(patients)),
        "classes": [name for i, name in enumerate(classes) if i in labels],
        **{name: metrics[name] for name in chosen},
        "majority_accuracy": majority_accuracy(labels),
        "intervals": {name: list(span) for name, span in intervals(samples).items()},
    }


def labels_and_probabilities(
    frame: pd.DataFrame, classes: Sequence[str]
) -> tuple[Labels, Probabilities]:
    """Labels `[clips]` as indices of `classes`, and probabilities `[clips, classes]`."""
    index = {name: i for i, name in enumerate(classes)}
    labels: Labels = np.array([index[name] for name in frame["label"]], dtype=np.int64)
    probabilities: Probabilities = frame[[f"p_{name}" for name in classes]].to_numpy(np.float64)
    return labels, probabilities


def _people(frame: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """One row a patient: the mean probability over the patient's recordings, and their class."""
    columns = [f"p_{name}" for name in classes]
    groups = frame.groupby("patient", sort=True)
    people = groups[columns].mean()
    people.insert(0, "label", groups["label"].first())
    people["predicted"] = np.array(classes)[people[columns].to_numpy().argmax(1)]
    return people.reset_index()


def _per_class(
    frame: pd.DataFrame, people: pd.DataFrame | None, classes: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Recall, precision and support of clips, and recall of patients; None where undefined."""
    rows: dict[str, dict[str, Any]] = {}
    for name in classes:
        own, said = frame["label"] == name, frame["predicted"] == name
        rows[name] = {
            "recall": _share(said[own]),
            "precision": _share(own[said]),
            "support": int(own.sum()),
            "patients": int(frame[own]["patient"].nunique()),
        }
        if people is not None:
            right = people["predicted"] == name
            rows[name]["patient_recall"] = _share(right[people["label"] == name])
    return rows


def _share(hits: pd.Series[bool]) -> float | None:
    return float(hits.mean()) if len(hits) else None


def _controlled(frame: pd.DataFrame, datamodule: DataModule) -> dict[str, Any] | None:
    """Healthy or sick among the side's children on the Meditron, by the probability of either.

    None for a task without a class of the healthy alone, or where the side holds only one of both.
    """
    grouping = datamodule.clips.task.grouping
    well = next((c for c in datamodule.split.classes if grouping[c] == [HEALTHY]), None)
    if well is None:
        return None
    children = {r.stem for r in datamodule.dataset.recordings if is_controlled(r)}
    chosen = frame[frame["recording"].isin(children)]
    healthy = chosen["label"] == well
    if not 0 < healthy.sum() < len(chosen):
        return None
    probability: npt.NDArray[np.float64] = chosen[f"p_{well}"].to_numpy(np.float64)
    two = pd.DataFrame(
        {
            "patient": chosen["patient"],
            "label": np.where(healthy, "healthy", "sick"),
            "p_healthy": probability,
            "p_sick": 1 - probability,
        }
    )
    return metrics_with_intervals(two, ("healthy", "sick"), (*SUBSET_METRICS, "auroc"))
