"""Predict the validation splits with a winner, and score it on the test split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from resp_tune.training.bootstrap import bootstrap, intervals
from resp_tune.training.datamodule import DataModule, FeatureCaches, prediction_table
from resp_tune.training.metrics import Probabilities, all_metrics, majority_accuracy
from resp_tune.training.model_bundle import Bundle


@dataclass(frozen=True)
class TestScore:
    """Predictions of the test split and their metrics; `by_seed` is of each seed's networks."""

    metrics: dict[str, float]
    by_seed: dict[str, list[float]]
    majority: float
    intervals: dict[str, tuple[float, float]]
    predictions: pd.DataFrame


def predict_validation_split(
    bundle: Bundle, datamodule: DataModule, caches: FeatureCaches
) -> pd.DataFrame:
    """Return predictions of each fold's networks, one a seed, for the fold's validation split.

    Nothing is augmented, so with the preset `notebook` they differ a little from the trial's own.
    """
    config, folds = bundle.config, datamodule.folds()
    frames = caches.frames(config.front_end, workers=1)
    parts = []
    for n, fold in enumerate(folds):
        own = Bundle(config, bundle.classes, bundle.networks[n :: len(folds)], {})
        clips = fold.validation.tensors(frames, config.front_end).clips
        probabilities = own.predict_clips(clips)
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
    """Score the bundle on the test split `stems`, which is decoded here and not before.

    `caches` are of these recordings; raises `RunError` if one has changed since it was hashed.
    """
    front_end, classes = bundle.config.front_end, bundle.classes
    frames = caches.frames(front_end, workers=workers)
    clips = datamodule.clip_labels(stems, stems)
    split = clips.tensors(frames, front_end)
    each = bundle.predict_each(split.clips)
    mean: Probabilities = each.mean(axis=0)
    labels, folds = split.labels.numpy(), len(datamodule.split.folds)
    by_seed = [
        all_metrics(labels, each[start : start + folds].mean(axis=0), classes)
        for start in range(0, len(each), folds)
    ]
    metrics = all_metrics(labels, mean, classes)
    table = prediction_table("test", clips, classes, mean)
    patients = list(table["patient"])
    # The resamples of a single patient are all the same.
    samples = bootstrap(labels, mean, patients) if len(set(patients)) > 1 else {}
    return TestScore(
        metrics,
        {name: [values[name] for values in by_seed] for name in metrics},
        majority_accuracy(labels),
        {name: span for name, span in intervals(samples).items() if name in metrics},
        table,
    )
