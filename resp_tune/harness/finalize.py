"""Finish a search: the winner and its one test-set access, result files, MLflow and report."""

from __future__ import annotations

import logging
import os
import shlex
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
import pandas as pd

from resp_tune.common.choices import COMPARED_RUNS, STATES
from resp_tune.common.fault_points import fault_point
from resp_tune.errors import RunError
from resp_tune.evaluation.compare import baseline_differences
from resp_tune.evaluation.score import (
    TestScore,
    group_metrics,
    predict_validation_split,
    score_test_split,
)
from resp_tune.harness.remote_sync import StorageSync
from resp_tune.harness.result_files import (
    model_details,
    seconds_spent,
    versions,
    write_csv,
    write_summary,
)
from resp_tune.harness.select_winner import Winner, load_networks, select_winner
from resp_tune.harness.spec import SearchLocation, SearchSpec
from resp_tune.harness.test_access_log import access_entry, add_access
from resp_tune.reporting.report_page import render
from resp_tune.study.replicates import replicates
from resp_tune.study.study import READINGS, SECONDS, STUDY_ID, TrialRecord, best_of, ranked, records
from resp_tune.tracking.registry import register_winner
from resp_tune.tracking.search_run import SearchRuns
from resp_tune.tracking.ui_links import search_links
from resp_tune.tracking.uri import redact
from resp_tune.training.datamodule import DataModule, FeatureCaches, make_feature_caches
from resp_tune.training.fingerprint import (
    TEST_HASHES_FILE,
    changed_recordings,
    data_digest,
    recording_hashes,
    save_recording_hashes,
)
from resp_tune.training.metrics import METRICS
from resp_tune.training.model_bundle import load_bundle, save_bundle

log = logging.getLogger(__name__)

FLOAT32_DIGITS = 9  # enough to distinguish any two float32 numbers


def finalize(
    spec: SearchSpec,
    study: optuna.Study,
    sync: StorageSync,
    runs: SearchRuns,
    caches: FeatureCaches,
    baselines: Mapping[str, Any],
) -> Path:
    """Do everything that follows the last trial; return the path of `summary.json`."""
    options, datamodule, folder = spec.options, spec.data.datamodule, spec.location.folder
    trials = records(study, spec.space)
    winner = select_winner(study, trials, options.metric, options.replicates)
    networks = load_networks(spec, study.user_attrs[STUDY_ID], winner.runs, caches)
    score = winner.trial.score if winner.chosen is None else winner.chosen.mean
    provenance = {
        "search": spec.location.name,
        "trial": winner.trial.number,
        "seeds": winner.seeds,
        "score": {options.metric: score},
        "command": command(spec.arguments, options.data),
    }
    details = model_details(datamodule, options.split_spec, spec.data.name, provenance)
    config, classes = winner.runs[0].config, datamodule.split.classes
    save_bundle(folder / "winner", config, classes, networks, details)
    bundle = load_bundle(folder / "winner")
    fault_point("bundle-written")
    weights = str(bundle.details["weights_sha256"])
    predictions = [predict_validation_split(bundle, datamodule, caches)]
    scored = None
    if datamodule.split.test is not None:
        cpus = spec.compute.machine.cpus
        test_caches = _hash_test_split(datamodule, folder, cpus)
        digest = data_digest(datamodule, test_caches.sources)
        entry = access_entry(winner.trial.number, weights, digest)
        study.set_user_attr(READINGS, add_access(study.user_attrs.get(READINGS, []), entry))
        sync.record("the test set is evaluated")  # the access is on record before it happens
        fault_point("test-access")
        scored = score_test_split(bundle, datamodule, test_caches, workers=cpus)
        fault_point("test-scored")
        predictions.append(scored.predictions)
    table = pd.concat(predictions, ignore_index=True)
    write_csv(folder / "winner" / "predictions.csv", table, digits=FLOAT32_DIGITS)
    best = ranked(trials, options.metric)
    summary = {
        **_summarise(spec, trials, winner, scored),
        "test_readings": study.user_attrs.get(READINGS, []),
        "baselines": dict(baselines),
        "seconds": seconds_spent([*trials, *replicates(study, trials)], study.user_attrs[SECONDS]),
        "mlflow": _register(spec.location, runs, winner, scored, weights, best[:COMPARED_RUNS]),
        "versions": versions(),
    }
    path = folder / "summary.json"
    fault_point("summary-writes")
    write_summary(path, summary)
    fault_point("report-writes")
    render(folder)
    return path


def _summarise(
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
        "trials": {state: sum(t.state == state for t in trials) for state in STATES},
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


def command(arguments: Sequence[str], data: str | None) -> str:
    """Return the command as typed, with the data it used and without passwords."""
    shown = [redact(argument) for argument in arguments]
    if data is None and (folder := os.environ.get("RESP_TUNE_DATA")):
        shown += ["--data", folder]
    return shlex.join(["python", "-m", "resp_tune.search", *shown])


def _hash_test_split(datamodule: DataModule, folder: Path, cpus: int) -> FeatureCaches:
    """Return the caches of the test split, not yet filled; warn if its recordings have changed."""
    caches = make_feature_caches(datamodule, datamodule.split.test or (), cpus)
    hashes = recording_hashes(datamodule, caches.sources)
    save_recording_hashes(folder, hashes, TEST_HASHES_FILE)
    if changed := changed_recordings(folder, hashes, TEST_HASHES_FILE):
        log.warning(
            f"the test split has changed since its first evaluation ({changed}): this is another "
            "test-set access, recorded beside the first"
        )
    return caches


def _register(
    location: SearchLocation,
    runs: SearchRuns,
    winner: Winner,
    scored: TestScore | None,
    weights: str,
    best: Sequence[TrialRecord],
) -> dict[str, Any]:
    """Log the evaluation and register the model; return the summary's ids and links.

    The links compare the runs of the `best` trials.
    """
    metrics: dict[str, float] = {}
    if scored is not None:
        metrics = {f"test_{name}": value for name, value in scored.metrics.items()}
        metrics["test_majority_accuracy"] = scored.majority
        for name, (low, high) in scored.intervals.items():
            metrics |= {f"test_{name}_low": low, f"test_{name}_high": high}
    run_id = runs.log_evaluation(
        winner.trial.key,
        params={**winner.trial.config.as_dict(), "seed": ", ".join(map(str, winner.seeds))},
        metrics=metrics,
        tags={"resp_tune.weights_sha256": weights},
    )
    bundle = location.folder / "winner"
    if run_id is None:
        raise RunError(
            f"the MLflow store '{redact(location.tracking_uri)}' cannot be reached: the winner is "
            f"in {bundle}; rerun the same command with --name {location.name} to register it"
        )
    model = register_winner(
        location.tracking_uri,
        location.storage,
        run_id=run_id,
        bundle=bundle,
        tags={"resp_tune.search": location.name},
    )
    run_ids = runs.run_ids()
    compared = [run_ids[t.key] for t in best if t.key in run_ids]
    return {
        "tracking_uri": redact(location.tracking_uri),
        "experiment_id": runs.experiment_id,
        "parent_run_id": runs.parent_run_id,
        "model": model.name,
        "version": model.version,
        "links": search_links(location.tracking_uri, runs.experiment_id, runs.search, compared),
    }
