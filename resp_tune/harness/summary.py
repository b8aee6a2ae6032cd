"""What `summary.json` says of the winner, of its rivals, and of the price of choosing."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from resp_tune.evaluation.baseline_difference import baseline_differences
from resp_tune.evaluation.group_metrics import group_metrics
from resp_tune.evaluation.score import TestScore
from resp_tune.harness import result_files
from resp_tune.harness.select_winner import Winner
from resp_tune.harness.spec import SearchSpec
from resp_tune.study.study import TrialRecord, best_of
from resp_tune.training.metrics import METRICS


def summarise(
    spec: SearchSpec, trials: Sequence[TrialRecord], winner: Winner, scored: TestScore | None
) -> dict[str, Any]:
    """The search's part of the summary; JSON values, `None` where there is nothing to say."""
    options, datamodule = spec.options, spec.data.datamodule
    test = None if scored is None else _test(spec, scored, winner)
    price = None if scored is None else _price(trials, scored, options.metric)
    leaks = datamodule.split.leaks(datamodule.dataset)
    return {
        "name": spec.location.name,
        "task": datamodule.clips.task.name,
        "protocol": options.protocol,
        "metric": options.metric,
        "data": {
            "name": spec.data.name,
            "synthetic": datamodule.dataset.synthetic,
            "recordings": len(datamodule.dataset.recordings),
            "notes": [
                *datamodule.dataset.problems,
                *datamodule.clips.dropped,
                *datamodule.split.notes,
            ],
        },
        "classes": list(datamodule.split.classes),
        "trials": result_files.count_states(trials),
        "winner": {
            "number": winner.trial.number,
            "params": winner.trial.values,
            "seeds": winner.seeds,
            "validation": winner.validation,
            "replicates": _replicates(winner),
            "price_of_searching": price,
            "test": test,
        },
        "candidates": winner.told,
        "leaks": {k: v for k, v in asdict(leaks).items() if k in ("patients", "sessions")},
        "leaked_recording_share": leaks.recording_share,
    }


def _replicates(winner: Winner) -> dict[str, Any] | None:
    if winner.chosen is None:
        return None
    told = winner.chosen.summary(dropped=False)
    return {k: told[k] for k in ("seeds", "scores", "mean", "sd", "bound", "search_score")}


def _price(
    trials: Sequence[TrialRecord], scored: TestScore, metric: str
) -> dict[str, float] | None:
    """How much of the best validation score was luck: the best of many is lucky too.

    Above 0 is worse on the test side, whichever way the metric goes. Of several seeds the test
    value is their mean: an average of networks would hide some of the price.
    """
    best = best_of(trials, metric)
    if best is None or best.score is None or metric not in scored.by_seed:
        return None
    test = statistics.fmean(scored.by_seed[metric])
    sign = 1 if METRICS[metric].mode == "max" else -1
    return {"best_validation": best.score, "test": test, "difference": sign * (best.score - test)}


def _test(spec: SearchSpec, scored: TestScore, winner: Winner) -> dict[str, Any]:
    datamodule = spec.data.datamodule
    return {
        **scored.metrics,
        "majority_accuracy": scored.majority,
        "intervals": {k: list(v) for k, v in scored.intervals.items()},
        "by_seed": _by_seed(scored.by_seed) if len(winner.runs) > 1 else None,
        **group_metrics(scored.predictions, datamodule),
        "against": baseline_differences(scored.predictions, datamodule),
    }


def _by_seed(values: Mapping[str, list[float]]) -> dict[str, dict[str, Any]]:
    return {
        name: {"mean": statistics.fmean(v), "sd": statistics.stdev(v), "values": v}
        for name, v in values.items()
    }
