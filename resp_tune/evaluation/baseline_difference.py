"""A model against what can be had without audio, on the same clips and the same patients drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from resp_tune.evaluation.baseline_cache import load_baseline_predictions
from resp_tune.evaluation.group_metrics import labels_and_probabilities
from resp_tune.training.bootstrap import bootstrap, intervals
from resp_tune.training.datamodule import DataModule
from resp_tune.training.metrics import METRICS

NAMES = ("macro_f1", "balanced_accuracy")

Against = dict[str, dict[str, dict[str, Any]]]


def baseline_differences(frame: pd.DataFrame, datamodule: DataModule) -> Against:
    """`{"device" | "all": {metric: {winner, baseline, difference, interval}}}`.

    `frame` holds the predictions of the test side and no other, in the order that a `ClipLabels`
    gives. `baseline` is the figure that the summary has: the mean over forests of different seeds.
    So each draw of the patients gives the winner's figure minus the mean of theirs, and `interval`
    is the central 95 % of that, [low, high]; None where a single patient leaves nothing to draw.
    """
    answers = load_baseline_predictions(datamodule)
    classes = datamodule.split.classes
    labels, probabilities = labels_and_probabilities(frame, classes)
    if list(frame["recording"]) != list(answers.stems) or (labels != answers.labels).any():
        raise ValueError("these are not the predictions of the test side's clips, in their order")
    patients = list(frame["patient"])
    winner = {name: METRICS[name].compute(labels, probabilities) for name in NAMES}
    drawn = bootstrap(labels, probabilities, patients, names=NAMES)
    found: Against = {}
    for columns, by_seed in answers.by_columns.items():
        forests = [np.eye(len(classes))[row] for row in by_seed]
        theirs = [bootstrap(labels, forest, patients, names=NAMES) for forest in forests]
        spans = intervals({n: drawn[n] - np.mean([t[n] for t in theirs], axis=0) for n in NAMES})
        found[columns] = {}
        for name in NAMES:
            scores = [METRICS[name].compute(labels, forest) for forest in forests]
            baseline = float(np.mean(scores))
            found[columns][name] = {
                "winner": winner[name],
                "baseline": baseline,
                "difference": winner[name] - baseline,
                "interval": list(spans[name]) if len(set(patients)) > 1 else None,
            }
    return found
