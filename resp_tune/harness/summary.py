"""Describe the winner, its rivals and the price of searching in `summary.json`."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from resp_tune.evaluation.compare import baseline_differences
from resp_tune.evaluation.score import TestScore, group_metrics
from resp_tune.harness.result_files import count_states
from resp_tune.harness.select_winner import Winner
from resp_tune.harness.spec import SearchSpec
from resp_tune.study.study import TrialRecord, best_of
from resp_tune.training.datamodule import DataModule
from resp_tune.training.metrics import METRICS


def summarise(
    spec: SearchSpec, trials: Sequence[TrialRecord], winner: Winner, scored: TestScore | None
) -> dict[str, Any]:
    """Return the part of the summary on the search and its winner, as JSON values."""
    options, datamodule = spec.options, spec.data.datamodule
    dataset, split = datamodule.dataset, datamodule.split
    leaks = split.leaks(dataset)
    return {
        "name": spec.location.name,
        "task": datamodule.clips.task.name,
        "protocol": options.protocol,
        "metric": options.metric,
        "data": {
            "name": spec.data.name,
            "synthetic": dataset.synthetic,
            "recordings": len(dataset.recordings),
            "notes": [*dataset.problems, *datamodule.clips.dropped, *split.notes],
        },
        "classes": list(split.classes),
        "trials": count_states(trials),
        "winner": {
            "number": winner.trial.number,
            "params": winner.trial.values,
            "seeds": winner.seeds,
            "validation": winner.validation,
            "replicates": _replicates(winner),
            "price_of_searching": scored and _price(trials, scored, options.metric),
            "test": scored and _test(datamodule, scored, winner),
        },
        "candidates": winner.candidate_summaries(),
        "leaks": {k: v for k, v in asdict(leaks).items() if k in ("patients", "sessions")},
        "leaked_recording_share": leaks.recording_share,
    }


def _replicates(winner: Winner) -> dict[str, Any] | None:
    if winner.chosen is None:
        return None
    entry = winner.chosen.summary(dropped=False)
    return {k: entry[k] for k in ("seeds", "scores", "mean", "sd", "bound", "search_score")}


def _price(
    trials: Sequence[TrialRecord], scored: TestScore, metric: str
) -> dict[str, float] | None:
    """Return how much of the best validation score was luck: the best of many is lucky too.

    Positive: worse on the test split, whichever direction is better. With several seeds, the test
    value is their mean: an average of networks would hide some of the price.
    """
    best = best_of(trials, metric)
    if best is None or best.score is None or metric not in scored.by_seed:
        return None
    test = statistics.fmean(scored.by_seed[metric])
    sign = 1 if METRICS[metric].mode == "max" else -1
    return {"best_validation": best.score, "test": test, "difference": sign * (best.score - test)}


def _test(datamodule: DataModule, scored: TestScore, winner: Winner) -> dict[str, Any]:
    by_seed = {
        name: {"mean": statistics.fmean(v), "sd": statistics.stdev(v), "values": v}
        for name, v in scored.by_seed.items()
        if len(winner.runs) > 1
    }
    return {
        **scored.metrics,
        "majority_accuracy": scored.majority,
        "intervals": {k: list(v) for k, v in scored.intervals.items()},
        "by_seed": by_seed or None,
        **group_metrics(scored.predictions, datamodule),
        "against": baseline_differences(scored.predictions, datamodule),
    }
