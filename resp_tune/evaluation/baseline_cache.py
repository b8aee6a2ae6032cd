"""Compute the no-audio baselines of a data set once, and keep them in the cache folder."""

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
    SCORES,
    BaselinePredictions,
    no_audio_baselines,
    predict_baselines,
)
from resp_tune.training.datamodule import DataModule

FORMAT = 2
Cached = TypeVar("Cached")


def load_baselines(datamodule: DataModule, jobs: int) -> dict[str, Any]:
    """Return `no_audio_baselines` of the data set; those of the test split under `test_side`."""
    scores = load_baseline_scores(datamodule.dataset, datamodule.clips, jobs)
    if datamodule.split.test is not None:
        scores["test_side"] = load_baseline_predictions(datamodule).scores()
    return scores


def load_baseline_scores(dataset: Dataset, clips: Clips, jobs: int | None) -> dict[str, Any]:
    """Return `no_audio_baselines` of the clips."""
    return _cached(
        f"{_key(dataset, clips)}.json",
        lambda: no_audio_baselines(clips, jobs=jobs),
        _read_scores,
    )


def load_baseline_predictions(datamodule: DataModule) -> BaselinePredictions:
    """Return `predict_baselines` of the data module."""

    def predict() -> dict[str, Any]:
        made = predict_baselines(datamodule.clips, datamodule.split)
        by_columns = {name: rows.tolist() for name, rows in made.by_columns.items()}
        return {**asdict(made), "labels": made.labels.tolist(), "by_columns": by_columns}

    return _cached(
        f"{_key(datamodule.dataset, datamodule.clips, datamodule.split.digest)}.answers.json",
        predict,
        _read_predictions,
    )


def _cached(name: str, make: Callable[[], dict[str, Any]], read: Callable[[Any], Cached]) -> Cached:
    """Return what `read` makes of the cache's file `name`, written again if it is unusable."""
    path = cache_folder() / "baselines" / name
    with suppress(OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return read(json.loads(path.read_bytes()))
    made = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(made).encode())
    return read(made)


def _read_scores(cached: Any) -> dict[str, Any]:
    by_columns = {
        name: {metric: float(cached[name][metric]) for metric in SCORES} for name in COLUMNS
    }
    return {"majority_accuracy": float(cached["majority_accuracy"]), **by_columns}


def _read_predictions(cached: Any) -> BaselinePredictions:
    stems, labels = tuple(cached["stems"]), np.array(cached["labels"], dtype=np.int64)
    rows = {name: np.array(cached["by_columns"][name], dtype=np.int64) for name in COLUMNS}
    if {labels.shape, *(row.shape[1:] for row in rows.values())} != {(len(stems),)}:
        raise ValueError("not one prediction a clip")
    return BaselinePredictions(stems, labels, rows, int(cached["majority"]))


def _key(dataset: Dataset, clips: Clips, *more: str) -> str:
    """Return a hash of the forests' inputs, of `more`, and of how they are grown."""
    metadata = [
        [r.stem, r.patient, r.location, r.device, r.diagnosis, r.age, r.sex]
        for r in dataset.recordings
    ]
    labels = [[c.recording.stem, c.label] for c in clips.clips]
    parts = [FORMAT, baselines.TREES, metadata, labels, asdict(clips.task), *more]
    content = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:24]
