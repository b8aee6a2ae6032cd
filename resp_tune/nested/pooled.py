"""Pool the test predictions of outer folds: an estimate of the procedure, searching included.

Each patient of a test split is predicted by a winner that was searched for, trained and selected
without that patient (nested cross-validation; Cawley and Talbot, JMLR 2010). The pooled metrics are
of what the whole procedure finds, not of one model.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from resp_tune.common.choices import STATES
from resp_tune.errors import RunError
from resp_tune.evaluation.compare import BaselineDifferences, pooled_differences
from resp_tune.evaluation.score import group_metrics, labels_and_probabilities, metrics_by_level
from resp_tune.harness.failures import Failures
from resp_tune.harness.spec import OUTER
from resp_tune.training.datamodule import DataModule
from resp_tune.training.metrics import majority_accuracy


@dataclass(frozen=True)
class OuterResult:
    """What the search of one outer fold has found: its summary and its test predictions."""

    fold: int
    datamodule: DataModule
    summary: Mapping[str, Any]
    predictions: pd.DataFrame


def read_outer_result(folder: Path, fold: int, datamodule: DataModule) -> OuterResult:
    """Read the result files of an outer fold's search in `folder`; raise `RunError` if damaged."""
    path = folder / "winner" / "predictions.csv"
    texts = dict.fromkeys(("side", "recording", "patient", "device", "label", "predicted"), str)
    try:
        summary = json.loads((folder / "summary.json").read_bytes())
        table = pd.read_csv(path, dtype=texts, keep_default_na=False)
        test = table[table["side"] == "test"].reset_index(drop=True)
        summary["winner"]["test"]["intervals"]
        for key in ("trials", "seconds", "mlflow", "stopped_by", "test_readings"):
            summary[key]
        split = datamodule.split
        labels_and_probabilities(test, split.classes)
        clips = split.select_clips(datamodule.clips, split.test or ())
        if list(test["recording"]) != [clip.recording.stem for clip in clips]:
            raise ValueError("the test predictions are not of its test split")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(
            f"the results of outer fold {fold} in '{folder}' cannot be read "
            f"({' '.join(str(error).split())}): remove its summary.json and rerun the same command"
        ) from error
    return OuterResult(fold, datamodule, summary, test)


def pool_predictions(results: Iterable[OuterResult]) -> pd.DataFrame:
    """Return all test predictions, with their outer fold as the column `outer_fold`."""
    tables = [result.predictions.assign(outer_fold=result.fold) for result in results]
    return pd.concat(tables, ignore_index=True)


def pooled_metrics(
    results: Sequence[OuterResult], datamodule: DataModule, failures: Failures
) -> dict[str, Any]:
    """Return the key `pooled` of `summary.json`; `datamodule` is that of all patients.

    Metrics at each level with 95 % patient-bootstrap intervals, and of groups; the differences to
    each baseline, fitted on the same outer folds, as `{metric: [difference, low, high]}`; the mean
    price of searching. What prevents the differences is added to `failures`.
    """
    table = pool_predictions(results)
    metrics, spans = metrics_by_level(table, datamodule)
    labels, _ = labels_and_probabilities(table, datamodule.split.classes)
    differences: BaselineDifferences = {}
    with failures.collected("the pooled predictions could not be compared with the baselines"):
        differences = pooled_differences(
            [result.predictions for result in results], [result.datamodule for result in results]
        )
    return {
        "clips": len(table),
        "patients": int(table["patient"].nunique()),
        **metrics,
        "majority_accuracy": majority_accuracy(labels),
        "intervals": spans,
        **group_metrics(table, datamodule),
        "differences": {
            name: {m: [row["difference"], *(row["interval"] or (None, None))]
                   for m, row in rows.items()}
            for name, rows in differences.items()
        },
        "baselines": {
            name: {m: row["baseline"] for m, row in rows.items()}
            for name, rows in differences.items()
        },
        "price_of_searching": mean_price(results),
    }  # fmt: skip


def mean_price(results: Iterable[OuterResult]) -> dict[str, float | None] | None:
    """Return the means of the prices of searching, and the standard deviation of the difference.

    None if no outer fold has one.
    """
    prices = [result.summary["winner"]["price_of_searching"] for result in results]
    known = [price for price in prices if price is not None]
    if not known:
        return None
    names = ("best_validation", "test", "difference")
    means = {name: statistics.fmean(price[name] for price in known) for name in names}
    differences = [price["difference"] for price in known]
    return {**means, "sd": statistics.stdev(differences) if len(known) > 1 else None}


def add_outer(
    summary: Mapping[str, Any],
    results: Sequence[OuterResult],
    datamodule: DataModule,
    failures: Failures,
) -> dict[str, Any]:
    """Return the summary of a nested search, from that of its last search, which has no test score.

    `trials` and `seconds` are of all searches.
    """
    searches = [*(result.summary for result in results), summary]
    counts = [sum(search["trials"].values()) for search in searches]
    overheads = [search["seconds"]["per_trial_overhead"] for search in searches]
    overhead = sum(n * one for n, one in zip(counts, overheads, strict=True)) / max(sum(counts), 1)
    totals = {
        name: round(sum(search["seconds"][name] for search in searches), 3)
        for name in ("total", "training")
    }
    pooled = pooled_metrics(results, datamodule, failures)
    return {
        **summary,
        "trials": {state: sum(search["trials"][state] for search in searches) for state in STATES},
        "seconds": {**totals, "per_trial_overhead": round(overhead, 3)},
        "outer": [_outer_entry(result) for result in results],
        "pooled": pooled,
        "price_of_searching": pooled["price_of_searching"],
    }


def _outer_entry(result: OuterResult) -> dict[str, Any]:
    summary, winner = result.summary, result.summary["winner"]
    return {
        "fold": result.fold,
        "folder": f"{OUTER}/{result.fold}",
        "clips": len(result.predictions),
        "patients": int(result.predictions["patient"].nunique()),
        "trials": summary["trials"],
        "stopped_by": summary["stopped_by"],
        "winner": {name: value for name, value in winner.items() if name != "test"},
        "test": winner["test"],
        "test_readings": summary["test_readings"],
        "parent_run_id": summary["mlflow"]["parent_run_id"],
    }
