"""The audit of a model: its sides made again and proved, then its figures on the test side."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from resp_tune.data.baselines import controlled_clips, held_out_baselines
from resp_tune.data.recordings import Dataset
from resp_tune.data.splits import make_sides
from resp_tune.data.tasks import get_task, make_clips
from resp_tune.data.wording import count
from resp_tune.errors import UserError
from resp_tune.learning.bundle import Bundle
from resp_tune.learning.intervals import bootstrap, intervals
from resp_tune.learning.metrics import Probabilities, all_metrics, majority_accuracy
from resp_tune.learning.problem import Problem
from resp_tune.searching.winner import score_test

# What a few clips of few classes still bear; the rest needs all classes to mean anything.
SUBSET_METRICS = ("macro_f1", "balanced_accuracy", "accuracy")
OTHER_SIDES = (
    "this data set does not give the sides that the model was trained with, so its test side may "
    "hold patients the model knows"
)

Say = Callable[[str], None]


def sides_of(bundle: Bundle, dataset: Dataset) -> Problem:
    """The problem that the model was trained on, made again from `dataset`.

    Raises `UserError` when the digest of its sides is not the one in the bundle: a model must not
    be scored on patients that it was trained on.
    """
    details = bundle.details
    provenance = details.get("provenance")
    if not isinstance(provenance, Mapping):
        provenance = {}
    missing = [key for key in ("task", "protocol") if not isinstance(details.get(key), str)]
    if not isinstance(provenance.get("split_sha256"), str):
        missing.append("provenance.split_sha256")
    if missing:
        raise UserError(
            f"the bundle's config.json has no {', '.join(missing)}, so that nobody can say whom it "
            "was trained on: give the winner/ folder of a search"
        )
    clips = make_clips(get_task(details["task"]), dataset)
    try:
        sides = make_sides(
            dataset,
            clips,
            details["protocol"],
            split_seed=int(provenance.get("split_seed", 0)),
            folds=int(provenance.get("folds", len(bundle.networks))),
            hold_out_device=provenance.get("hold_out_device"),
            drop_shared_patients=bool(provenance.get("drop_shared_patients", False)),
        )
    except (UserError, TypeError, ValueError) as error:
        raise UserError(f"{OTHER_SIDES} ({error}): give the data set of its search") from error
    if sides.digest != provenance["split_sha256"] or sides.classes != bundle.classes:
        trained = provenance.get("data")
        of = f"its search had --data {trained}" if trained else "give the data set of its search"
        raise UserError(f"'{dataset.root}': {OTHER_SIDES}; {of}")
    return Problem(dataset, clips, sides)


def audit_model(bundle: Bundle, problem: Problem, *, workers: int, say: Say) -> dict[str, Any]:
    """Figures of the model on the test side of `problem`, which comes from `sides_of`.

    Each reading of a test side is declared: said on the way and kept under `reading`. A protocol
    without a test side gives None for `test` and `reading`.
    """
    sides, details = problem.sides, bundle.details
    provenance = details["provenance"]
    found: dict[str, Any] = {
        "task": sides.task,
        "protocol": sides.protocol,
        "classes": list(sides.classes),
        "search": provenance.get("search"),
        "trial": provenance.get("trial"),
        "split_seed": sides.split_seed,
        "split_sha256": sides.digest,
        "weights_sha256": details["weights_sha256"],
        "notes": list(sides.notes),
        "reading": None,
        "test": None,
    }
    if sides.test is None:
        found["reason"] = f"the protocol '{sides.protocol}' has no test side: nothing is scored"
        return found
    found["reading"] = declare(problem, sides.test, details["weights_sha256"], say)
    frame = score_test(bundle, problem, sides.test, workers=workers).predictions
    found["test"] = _test(frame, problem)
    return found


def declare(problem: Problem, stems: Sequence[str], weights: str, say: Say) -> dict[str, str]:
    """Say that the test side is about to be read; `{time, weights_sha256}`, time in UTC."""
    patients = {r.patient for r in problem.dataset.recordings if r.stem in set(stems)}
    say(
        f"the test side is read now: {count(len(stems), 'recording')} of "
        f"{count(len(patients), 'patient')}, by weights {weights[:12]}. A model chosen after "
        "seeing these figures needs another test side"
    )
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"time": now, "weights_sha256": weights}


def _test(frame: pd.DataFrame, problem: Problem) -> dict[str, Any]:
    classes = problem.sides.classes
    by_recording = problem.clips.task.unit == "recording"
    people = _by_patient(frame, classes) if by_recording else None
    devices = sorted(set(frame["device"]))
    return {
        "clips": len(frame),
        "patients": frame["patient"].nunique(),
        "by_clip": figures(frame, classes),
        "by_patient": None if people is None else figures(people, classes),
        "per_class": _per_class(frame, people, classes),
        "by_device": {
            name: figures(frame[frame["device"] == name], classes, SUBSET_METRICS)
            for name in devices
        },
        "controlled": _controlled(frame, problem) if by_recording else None,
        "baselines": held_out_baselines(problem.dataset, problem.clips, problem.sides),
    }


def figures(
    frame: pd.DataFrame, classes: Sequence[str], names: Sequence[str] | None = None
) -> dict[str, Any]:
    """Metrics of predictions with 95 % patient-bootstrap intervals, beside the majority rate.

    `frame` has columns patient, label and p_<class>. `names` chooses metrics, None: all. One
    patient alone has no intervals.
    """
    labels = np.array([list(classes).index(name) for name in frame["label"]], dtype=np.int64)
    probabilities: Probabilities = frame[[f"p_{name}" for name in classes]].to_numpy(np.float64)
    metrics = all_metrics(labels, probabilities, tuple(classes))
    chosen = list(metrics) if names is None else list(names)
    patients = list(frame["patient"])
    several = len(set(patients)) > 1
    spans = intervals(bootstrap(labels, probabilities, patients)) if several else {}
    return {
        "clips": len(frame),
        "patients": len(set(patients)),
        "classes": [name for i, name in enumerate(classes) if i in labels],
        **{name: metrics[name] for name in chosen},
        "majority_accuracy": majority_accuracy(labels),
        "intervals": {name: list(spans[name]) for name in chosen if name in spans},
    }


def _by_patient(frame: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
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


def _controlled(frame: pd.DataFrame, problem: Problem) -> dict[str, Any] | None:
    """Healthy or sick among the test side's children on the Meditron, by the probability of either.

    None for a task without a class of the healthy, or where the test side holds only one of both.
    """
    classes = problem.sides.classes
    well = next((name for name in classes if name.lower() == "healthy"), None)
    if well is None:
        return None
    recordings = problem.dataset.recordings
    children = {recordings[c.recording].stem for c in controlled_clips(problem.dataset).clips}
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
    return figures(two, ("healthy", "sick"), (*SUBSET_METRICS, "auroc"))
