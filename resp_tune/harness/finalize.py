"""Finish a search: the winner and its one test-set access, result files, MLflow and report."""

from __future__ import annotations

import logging
import os
import shlex
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import optuna
import pandas as pd

from resp_tune.common.choices import COMPARED_RUNS, STATES
from resp_tune.common.fault_points import fault_point
from resp_tune.common.text import one_line
from resp_tune.common.timeline import span
from resp_tune.common.trial_key import TrialKey
from resp_tune.errors import RunError
from resp_tune.evaluation.compare import baseline_differences
from resp_tune.evaluation.score import (
    TestScore,
    group_metrics,
    operating_point,
    predict_validation_split,
    score_test_split,
)
from resp_tune.features.cache import FeatureCaches
from resp_tune.harness.background import BackgroundSetup
from resp_tune.harness.failures import Failures
from resp_tune.harness.options import SearchOptions
from resp_tune.harness.remote_sync import StorageSync
from resp_tune.harness.result_files import (
    model_details,
    seconds_spent,
    versions,
    write_csv,
    write_summary,
)
from resp_tune.harness.select_winner import Winner, load_members, select_winner
from resp_tune.harness.spec import SearchData, SearchLocation, SearchSpec
from resp_tune.harness.test_access_log import access_by, add_access
from resp_tune.reporting.report_html import render
from resp_tune.reporting.search_plots import Chart
from resp_tune.study.replicates import replicates
from resp_tune.study.study import (
    READINGS,
    SECONDS,
    STUDY_ID,
    TrialRecord,
    best_of,
    ranked,
    records,
    stopped_by,
)
from resp_tune.tracking.registry import register_winner
from resp_tune.tracking.search_run import SearchRuns
from resp_tune.tracking.tags import Tag, encoder_tags
from resp_tune.tracking.ui_links import search_links
from resp_tune.tracking.uri import redact
from resp_tune.training.bundled_encoder import describe_encoder
from resp_tune.training.datamodule import (
    TEST_HASHES_FILE,
    DataModule,
    changed_recordings,
    data_digest,
    make_feature_caches,
    recording_hashes,
    save_recording_hashes,
)
from resp_tune.training.metrics import METRICS
from resp_tune.training.model_bundle import OPERATING_POINT, Bundle, load_bundle, save_bundle

log = logging.getLogger(__name__)

Complete = Callable[[Mapping[str, Any]], Mapping[str, Any]]  # from a summary to a summary
FLOAT32_DIGITS = 9  # enough to distinguish any two float32 numbers


def finalize(
    spec: SearchSpec,
    study: optuna.Study,
    sync: StorageSync,
    setup: BackgroundSetup,
    failures: Failures,
    complete: Complete,
) -> Path:
    """Do everything that follows the last trial; return the path of `summary.json`.

    The result files come first, and MLflow after them. `complete` adds to the summary what other
    searches have found. `failures` collects what could not be done and does not prevent the rest.
    The winner of an outer fold is not registered: its only use is its test score.
    """
    options, folder, runs = spec.options, spec.location.folder, setup.tracking.result().runs
    trials, caches = records(study, spec.space), setup.caches.result()
    winner = select_winner(study, trials, options)
    typed, datamodule = command(spec.arguments, options.data), spec.data.datamodule
    with span("winner"):
        member, *others = load_members(spec, study.user_attrs[STUDY_ID], winner, caches)
        config, classes = member.config, datamodule.split.classes
        encoder = spec.data.encoder(config)
        plain = Bundle(config, classes, member.networks, {}, encoder, tuple(others))
        validation, metrics = predict_validation_split(plain, datamodule, caches)
        if others:
            winner = replace(winner, ensemble_validation=metrics)
        point = operating_point(validation, plain.classes, options.metric)
        bundle = _save_winner(options, spec.location, spec.data, winner, plain, typed, point)
        if point:
            validation, _ = predict_validation_split(bundle, datamodule, caches)
    predictions, scored = [validation], None
    if datamodule.split.test is not None:
        cpus = spec.compute.machine.cpus
        with span("test split"):
            scored = _score_test_split(datamodule, folder, study, sync, bundle, cpus)
        predictions.append(scored.predictions)
    with failures.collected("winner/predictions.csv could not be written"):
        table = pd.concat(predictions, ignore_index=True)
        write_csv(folder / "winner" / "predictions.csv", table, digits=FLOAT32_DIGITS)
    best = [trial.key for trial in ranked(trials, options.objective)[:COMPARED_RUNS]]
    described = _summarise(spec, study, winner, bundle, scored, failures)
    described["winner"]["operating_point"] = point or None
    found = {
        **described,
        "test_readings": study.user_attrs.get(READINGS, []),
        "baselines": _baselines(setup, failures),
        "seconds": seconds_spent([*trials, *replicates(study, trials)], study.user_attrs[SECONDS]),
        "mlflow": _tracking(spec.location, runs, best),
        "versions": versions(),
    }
    summary = complete(found)
    figures: list[Chart] = []
    path = _write_results(folder, summary, figures, failures)
    with failures.collected("the winner could not be registered in MLflow"):
        metrics = _evaluation_metrics(scored) | _pooled_metrics(summary)
        with span("registration"):
            model = _register(spec.location, runs, winner, metrics, bundle)
        registered = {**summary, "mlflow": {**summary["mlflow"], **model}}
        _write_results(folder, registered, figures, failures)
    return path


def _save_winner(
    options: SearchOptions,
    location: SearchLocation,
    data: SearchData,
    winner: Winner,
    plain: Bundle,
    typed: str,
    point: Mapping[str, float],
) -> Bundle:
    """Write the winner's bundle and return it as it was written.

    `plain` holds the networks, `typed` is the command, and `point` the operating point.
    """
    folder = location.folder / "winner"
    score = winner.validation.get(options.objective) if winner.others else winner.score
    provenance = {
        "search": location.name,
        "trial": winner.trial.number,
        **_ensemble(winner),
        "seeds": winner.seeds,
        "score": {options.objective: score},
        "command": typed,
    }
    details = model_details(data.datamodule, options.split_spec, data.name, provenance)
    if point:
        details[OPERATING_POINT] = dict(point)
    save_bundle(folder, plain, details)
    bundle = load_bundle(folder)
    fault_point("bundle-written")
    return bundle


def _ensemble(winner: Winner) -> dict[str, list[int]]:
    """Return the numbers of the trials of an ensemble, nothing for a winner alone."""
    return {"ensemble": [m.trial.number for m in winner.members]} if winner.others else {}


def _score_test_split(
    datamodule: DataModule,
    folder: Path,
    study: optuna.Study,
    sync: StorageSync,
    bundle: Bundle,
    cpus: int,
) -> TestScore:
    """Record the test-set access, also in an object store, and then score the winner."""
    caches = _hash_test_split(datamodule, folder, cpus)
    entry = access_by(bundle, data_digest(datamodule, caches.sources))
    study.set_user_attr(READINGS, add_access(study.user_attrs.get(READINGS, []), entry))
    sync.record("the test set is evaluated")  # the access is on record before it happens
    fault_point("test-access")
    scored = score_test_split(bundle, datamodule, caches, workers=cpus)
    fault_point("test-scored")
    return scored


def _baselines(setup: BackgroundSetup, failures: Failures) -> dict[str, Any] | None:
    with failures.collected("the baselines could not be computed"), span("baselines are awaited"):
        return dict(setup.baselines.result())
    return None


def _write_results(
    folder: Path, summary: Mapping[str, Any], figures: list[Chart], failures: Failures
) -> Path:
    """Write `summary.json` and the page that is made from it; `figures` are drawn once."""
    path = folder / "summary.json"
    fault_point("summary-writes")
    write_summary(path, summary)
    with failures.collected("report.html could not be written"), span("report"):
        fault_point("report-writes")
        render(folder, drawn=figures)
    return path


def _summarise(
    spec: SearchSpec,
    study: optuna.Study,
    winner: Winner,
    bundle: Bundle,
    scored: TestScore | None,
    failures: Failures,
) -> dict[str, Any]:
    """Return the part of the summary on the search and its winner, as JSON values."""
    options, datamodule = spec.options, spec.data.datamodule
    dataset, split, trials = datamodule.dataset, datamodule.split, records(study, spec.space)
    leaks = split.leaks(dataset)
    return {
        "name": spec.location.name,
        **_outer_fold(spec.location),
        "task": datamodule.clips.task.name,
        "protocol": options.protocol,
        "metric": options.metric,
        "level": options.level,
        "data": {
            "name": spec.data.name,
            "synthetic": dataset.synthetic,
            "recordings": len(dataset.recordings),
            "notes": [*dataset.problems, *datamodule.clips.dropped, *split.notes],
        },
        "classes": list(split.classes),
        "stopped_by": _stopped_by(options, spec.budget, len(trials), study),
        "trials": {state: sum(t.state == state for t in trials) for state in STATES},
        "winner": {
            "number": winner.trial.number,
            "params": winner.trial.values,
            "encoder": bundle.encoder and describe_encoder(bundle.encoder),
            "seeds": winner.seeds,
            "ensemble": winner.ensemble_summary(),
            "validation": winner.validation,
            "replicates": _replicates(winner),
            "price_of_searching": scored and _price(trials, winner, scored, options.objective),
            "test": scored and _test(datamodule, scored, winner, failures),
        },
        "candidates": winner.candidate_summaries(),
        "leaks": {k: v for k, v in asdict(leaks).items() if k in ("patients", "sessions")},
        "leaked_recording_share": leaks.recording_share,
    }


def _outer_fold(location: SearchLocation) -> dict[str, int]:
    return {} if location.outer_fold is None else {"outer_fold": location.outer_fold}


def _stopped_by(
    options: SearchOptions, budget: int | None, trials: int, study: optuna.Study
) -> str:
    """Return what ended the trials: `trials`, `time_budget`, `space`, or a rule of `--stop`."""
    if (rule := stopped_by(study, options.stop)) is not None:
        return rule
    if budget is None or trials < budget:
        return "time_budget"
    return "trials" if budget == options.budget else "space"


def _replicates(winner: Winner) -> dict[str, Any] | None:
    if winner.chosen is None:
        return None
    entry = winner.chosen.summary(dropped=False)
    return {k: entry[k] for k in ("seeds", "scores", "mean", "sd", "bound", "search_score")}


def _price(
    trials: Sequence[TrialRecord], winner: Winner, scored: TestScore, metric: str
) -> dict[str, float] | None:
    """Return how much of the best validation score was luck: the best of many is lucky too.

    Positive: worse on the test split, whichever direction is better. With several seeds, the test
    value is their mean: an average of networks would hide some of the price, and so would that of
    an ensemble, of which the best trial counts alone. It is without the winner's operating point,
    which trials do not have.
    """
    best = best_of(trials, metric)
    if best is None or best.score is None or metric not in scored.plain_by_seed:
        return None
    test = statistics.fmean(scored.plain_by_seed[metric][: len(winner.runs)])
    sign = 1 if METRICS[metric].mode == "max" else -1
    return {"best_validation": best.score, "test": test, "difference": sign * (best.score - test)}


def _test(
    datamodule: DataModule, scored: TestScore, winner: Winner, failures: Failures
) -> dict[str, Any]:
    by_seed = {
        name: {"mean": statistics.fmean(v), "sd": statistics.stdev(v), "values": v}
        for name, v in scored.by_seed.items()
        if len(winner.runs) > 1 and not winner.others
    }
    against: dict[str, Any] = {}
    with failures.collected("the winner could not be compared with the baselines"):
        against = baseline_differences(scored.predictions, datamodule)
    unmoved = {} if scored.unmoved is None else {"without_operating_point": scored.unmoved}
    return {
        **scored.metrics,
        **unmoved,
        "majority_accuracy": scored.majority,
        "intervals": {k: list(v) for k, v in scored.intervals.items()},
        "by_seed": by_seed or None,
        **group_metrics(scored.predictions, datamodule),
        "against": against,
    }


def command(arguments: Sequence[str], data: str | None) -> str:
    """Return the command as typed, with the data it used and without passwords."""
    shown = [redact(argument) for argument in arguments]
    if data is None and (folder := os.environ.get("RESP_TUNE_DATA")):
        shown += ["--data", folder]
    # A path that is not UTF-8 cannot be written into a report.
    return shlex.join(["python", "-m", "resp_tune.search", *map(one_line, shown)])


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


def _tracking(
    location: SearchLocation, runs: SearchRuns, compared: Sequence[TrialKey]
) -> dict[str, Any]:
    """Return where the search is in MLflow, with links that compare the runs of some trials.

    The winner is not registered yet.
    """
    run_ids = runs.run_ids()
    best = [run_ids[key] for key in compared if key in run_ids]
    return {
        "tracking_uri": redact(location.tracking_uri),
        "experiment_id": runs.experiment_id,
        "parent_run_id": runs.parent_run_id,
        "model": None,
        "version": None,
        "links": search_links(location.tracking_uri, runs.experiment_id, runs.search, best),
    }


def _evaluation_metrics(scored: TestScore | None) -> dict[str, float]:
    if scored is None:
        return {}
    metrics = {f"test_{name}": value for name, value in scored.metrics.items()}
    metrics["test_majority_accuracy"] = scored.majority
    for name, (low, high) in scored.intervals.items():
        metrics |= {f"test_{name}_low": low, f"test_{name}_high": high}
    return metrics


def _pooled_metrics(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return what outer folds say of the procedure, under other names than a model's test score."""
    pooled = summary.get("pooled", {})
    metrics = {f"pooled_{name}": pooled[name] for name in pooled.get("intervals", {})}
    for name, (low, high) in pooled.get("intervals", {}).items():
        metrics |= {f"pooled_{name}_low": low, f"pooled_{name}_high": high}
    return metrics


def _without_test(metrics: Mapping[str, float]) -> dict[str, str]:
    """Return the tag of a registered model that only outer folds were tested for."""
    if not any(name.startswith("pooled_") for name in metrics):
        return {}
    return {
        "resp_tune.test": "none: trained on all patients; the metrics pooled_* of its run estimate "
        "the procedure that made it, by models of outer folds"
    }


def _register(
    location: SearchLocation,
    runs: SearchRuns,
    winner: Winner,
    metrics: Mapping[str, float],
    bundle: Bundle,
) -> dict[str, Any]:
    """Log the evaluation and register the model; return its `model` and `version`."""
    encoder = {} if bundle.encoder is None else encoder_tags(describe_encoder(bundle.encoder))
    run_id = runs.log_evaluation(
        winner.trial.key,
        params={
            **winner.trial.config.as_dict(),
            "seed": ", ".join(map(str, winner.seeds)),
            **{name: ", ".join(map(str, numbers)) for name, numbers in _ensemble(winner).items()},
        },
        metrics=dict(metrics),
        tags={Tag.WEIGHTS: str(bundle.details["weights_sha256"]), **encoder},
    )
    if run_id is None:
        raise RunError(
            f"the winner could not be logged and registered in '{redact(location.tracking_uri)}' "
            f"({runs.failure})"
        )
    if location.outer_fold is not None:
        return {}
    model = register_winner(
        location.tracking_uri,
        location.storage,
        run_id=run_id,
        bundle=location.folder / "winner",
        tags={Tag.SEARCH: location.name, **encoder} | _without_test(metrics),
    )
    return {"model": model.name, "version": model.version}
