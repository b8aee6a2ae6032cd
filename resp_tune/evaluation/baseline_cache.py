"""The no-audio baselines of a data set, computed once and kept in the cache folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any, TypeVar

import numpy as np

from resp_tune.common.paths import cache_folder, write_atomically
from resp_tune.data.dataset import Dataset
from resp_tune.data.tasks import Clips
from resp_tune.evaluation import baselines
from resp_tune.evaluation.baselines import (
    COLUMNS,
    BaselinePredictions,
    no_audio_baselines,
    predict_baselines,
)
from resp_tune.training.datamodule import DataModule

FORMAT = 2
Kept = TypeVar("Kept")


def load_baselines(datamodule: DataModule, jobs: int) -> dict[str, Any]:
    """`no_audio_baselines` of the whole data set, and under `test_side` those of the test side."""
    found = load_baseline_scores(datamodule.dataset, datamodule.clips, jobs)
    if datamodule.split.test is not None:
        found["test_side"] = load_baseline_predictions(datamodule).scores()
    return found


def load_baseline_scores(dataset: Dataset, clips: Clips, jobs: int | None) -> dict[str, Any]:
    """`no_audio_baselines` of the clips, by patient in 5 folds."""
    return _kept(
        f"{_key(dataset, clips)}.json",
        lambda: no_audio_baselines(clips, jobs=jobs),
        _scores,
    )


def load_baseline_predictions(datamodule: DataModule) -> BaselinePredictions:
    """`predict_baselines` of the problem."""

    def answer() -> dict[str, Any]:
        made = predict_baselines(datamodule.clips, datamodule.split)
        by_columns = {name: rows.tolist() for name, rows in made.by_columns.items()}
        return {**asdict(made), "labels": made.labels.tolist(), "by_columns": by_columns}

    return _kept(
        f"{_key(datamodule.dataset, datamodule.clips, datamodule.split.digest)}.answers.json",
        answer,
        _answers,
    )


def _kept(name: str, make: Callable[[], dict[str, Any]], read: Callable[[Any], Kept]) -> Kept:
    """What `read` finds in the cache's file `name`; one that it cannot use is made anew."""
    path = cache_folder() / "baselines" / name
    with suppress(OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return read(json.loads(path.read_bytes()))
    made = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(made).encode())
    return read(made)


def _scores(kept: Any) -> dict[str, Any]:
    by_columns = {
        name: {metric: float(kept[name][metric]) for metric in ("balanced_accuracy", "macro_f1")}
        for name in COLUMNS
    }
    return {"majority_accuracy": float(kept["majority_accuracy"]), **by_columns}


def _answers(kept: Any) -> BaselinePredictions:
    stems, labels = tuple(kept["stems"]), np.array(kept["labels"], dtype=np.int64)
    rows = {name: np.array(kept["by_columns"][name], dtype=np.int64) for name in COLUMNS}
    if {labels.shape, *(row.shape[1:] for row in rows.values())} != {(len(stems),)}:
        raise ValueError("not one answer a clip")
    return BaselinePredictions(stems, labels, rows, int(kept["majority"]))


def _key(dataset: Dataset, clips: Clips, *more: str) -> str:
    """A hash of what the forests see, of `more`, and of how they are grown."""
    sheets = [
        [r.stem, r.patient, r.location, r.device, r.diagnosis, r.age, r.sex]
        for r in dataset.recordings
    ]
    labels = [[c.recording.stem, c.label] for c in clips.clips]
    parts = [FORMAT, baselines.TREES, sheets, labels, asdict(clips.task), *more]
    content = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:24]
