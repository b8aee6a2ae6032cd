"""Compare a model with the no-audio baselines, on the same clips and resamples of the patients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from resp_tune.evaluation.baseline_cache import load_baseline_predictions
from resp_tune.evaluation.baselines import SCORES
from resp_tune.evaluation.group_metrics import labels_and_probabilities
from resp_tune.training.bootstrap import bootstrap, intervals
from resp_tune.training.datamodule import DataModule
from resp_tune.training.metrics import METRICS

BaselineDifferences = dict[str, dict[str, dict[str, Any]]]


def baseline_differences(table: pd.DataFrame, datamodule: DataModule) -> BaselineDifferences:
    """Return `{"device" | "all": {metric: {winner, baseline, difference, interval}}}`.

    `table` holds the predictions of the test split only, in the order of `ClipLabels`. `baseline`
    is the mean over forests of different seeds, as in the summary, so each resample of the patients
    gives the winner's metric minus the mean of theirs. `interval` is the central 95 % of these,
    [low, high], or None for a single patient, whose resamples are all the same.
    """
    predictions = load_baseline_predictions(datamodule)
    classes = datamodule.split.classes
    labels, probabilities = labels_and_probabilities(table, classes)
    same = list(table["recording"]) == list(predictions.stems)
    if not same or (labels != predictions.labels).any():
        raise ValueError("these are not the predictions of the test split's clips, in their order")
    patients = list(table["patient"])
    samples = bootstrap(labels, probabilities, patients, names=SCORES)
    found: BaselineDifferences = {}
    for columns, by_seed in predictions.by_columns.items():
        forests = [np.eye(len(classes))[row] for row in by_seed]
        of_forests = [bootstrap(labels, forest, patients, names=SCORES) for forest in forests]
        spans = intervals(
            {n: samples[n] - np.mean([s[n] for s in of_forests], axis=0) for n in SCORES}
        )
        found[columns] = {}
        for name in SCORES:
            compute = METRICS[name].compute
            winner = compute(labels, probabilities)
            baseline = float(np.mean([compute(labels, forest) for forest in forests]))
            found[columns][name] = {
                "winner": winner,
                "baseline": baseline,
                "difference": winner - baseline,
                "interval": list(spans[name]) if len(set(patients)) > 1 else None,
            }
    return found
