"""The winner as a bundle, scored on validation, and once on the test side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from resp_tune.study.study import TrialRecord
from resp_tune.training.bootstrap import bootstrap, intervals
from resp_tune.training.datamodule import DataModule, FeatureCaches, prediction_table
from resp_tune.training.metrics import Probabilities, all_metrics, majority_accuracy
from resp_tune.training.model_bundle import Bundle, load_bundle, save_bundle
from resp_tune.training.network import SoundNet


@dataclass(frozen=True)
class TestScore:
    """Predictions for the clips of a side, and what they score.

    `by_seed`: each metric of each seed's networks alone.
    """

    metrics: dict[str, float]
    by_seed: dict[str, list[float]]
    majority: float
    intervals: dict[str, tuple[float, float]]
    predictions: pd.DataFrame


def write_bundle(
    folder: Path,
    run: TrialRecord,
    networks: Sequence[SoundNet],
    datamodule: DataModule,
    details: Mapping[str, Any],
) -> Bundle:
    """The networks as a bundle in `folder`; its config has the seed of `run`, the first of them."""
    save_bundle(folder, run.config, datamodule.split.classes, networks, details)
    return load_bundle(folder)


def predict_validation_split(
    bundle: Bundle, datamodule: DataModule, caches: FeatureCaches
) -> pd.DataFrame:
    """What the networks of each fold, one a seed about its own validation side.

    Never augmented, so with the preset `notebook` it differs a little from the trial's own figures.
    """
    config, folds = bundle.config, datamodule.folds()
    frames = caches.frames(config.front_end, workers=1)
    parts = []
    for n, fold in enumerate(folds):
        own = Bundle(config, bundle.classes, bundle.networks[n :: len(folds)], {})
        side = fold.validation.tensors(frames, config.front_end)
        probabilities = own.predict_clips(side.clips)
        parts.append(prediction_table("validation", fold.validation, bundle.classes, probabilities))
    return pd.concat(parts, ignore_index=True)


def score_test_split(
    bundle: Bundle,
    datamodule: DataModule,
    stems: Sequence[str],
    caches: FeatureCaches,
    *,
    workers: int,
) -> TestScore:
    """Score the bundle on the test side `stems`, whose recordings are read here and not before.

    `caches` are of these recordings, unchanged since they were hashed, or it is a `RunError`.
    """
    front_end, classes = bundle.config.front_end, bundle.classes
    frames = caches.frames(front_end, workers=workers)
    table = datamodule.clip_labels(stems, stems)
    side = table.tensors(frames, front_end)
    each = bundle.predict_each(side.clips)
    mean: Probabilities = each.mean(axis=0)
    labels, folds = side.labels.numpy(), len(datamodule.split.folds)
    by_seed = [
        all_metrics(labels, each[start : start + folds].mean(axis=0), classes)
        for start in range(0, len(each), folds)
    ]
    metrics = all_metrics(labels, mean, classes)
    frame = prediction_table("test", table, classes, mean)
    patients = list(frame["patient"])
    # Resamples of one patient are all the same: they say nothing of another.
    samples = bootstrap(labels, mean, patients) if len(set(patients)) > 1 else {}
    return TestScore(
        metrics,
        {name: [found[name] for found in by_seed] for name in metrics},
        majority_accuracy(labels),
        {name: span for name, span in intervals(samples).items() if name in metrics},
        frame,
    )
