"""The end of a search: the winner and its one test, the files, MLflow's registry, the report."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import optuna
import pandas as pd

from resp_tune.errors import RunError
from resp_tune.features.store import Filled
from resp_tune.learning.bundle import Bundle
from resp_tune.learning.metrics import METRICS
from resp_tune.reporting.page import render
from resp_tune.searching import files
from resp_tune.searching.prepare import Prepared
from resp_tune.searching.winner import (
    Scored,
    declare_reading,
    score_test,
    score_validation,
    write_bundle,
)
from resp_tune.tracking.links import search_links
from resp_tune.tracking.registry import register_winner
from resp_tune.tracking.runs import SearchRuns
from resp_tune.tracking.uri import redact
from resp_tune.tuning.study import READINGS, SECONDS, STUDY_ID, TrialRecord, best_of, records

COMPARED = 3  # runs that the link to MLflow's comparison opens


def finish(
    prepared: Prepared,
    study: optuna.Study,
    runs: SearchRuns,
    filled: Filled,
    baselines: Mapping[str, Any],
) -> Path:
    """Everything that follows the last trial; the path of `summary.json`."""
    trials = records(study, prepared.space)
    winner = best_of(trials, prepared.settings.metric)
    if winner is None:
        raise RunError("no trial has finished: there is no winner")
    folder = prepared.folder / "winner"
    checkpoint = prepared.folder / "trials" / str(winner.number) / "checkpoint.pt"
    bundle = write_bundle(folder, winner, checkpoint, prepared.problem, _details(prepared, winner))
    predictions = [
        score_validation(bundle, prepared.problem, filled.folders[winner.config.front_end])
    ]
    scored, readings = _read_test(prepared, study, winner, bundle)
    if scored is not None:
        predictions.append(scored.predictions)
    files.write_csv(folder / "predictions.csv", pd.concat(predictions, ignore_index=True))
    summary = {
        **_summary(prepared, trials, winner, scored),
        "test_readings": readings,
        "baselines": dict(baselines),
        "seconds": files.seconds_spent(trials, study.user_attrs[SECONDS]),
        "mlflow": _into_mlflow(prepared, study, runs, winner, scored, bundle, trials),
        "versions": files.versions(),
    }
    path = prepared.folder / "summary.json"
    files.write_summary(path, summary)
    render(prepared.folder)
    return path


def _details(prepared: Prepared, winner: TrialRecord) -> dict[str, Any]:
    """What `config.json` says of where the model comes from."""
    settings, problem = prepared.settings, prepared.problem
    return {
        "task": settings.task,
        "protocol": settings.protocol,
        "provenance": {
            "search": prepared.name,
            "trial": winner.number,
            "score": {settings.metric: winner.score},
            "data": prepared.data_name,
            "synthetic": problem.dataset.synthetic,
            **settings.sides(),
            "split_sha256": problem.sides.digest,
            "command": command(prepared),
            "versions": files.versions(),
        },
    }


def command(prepared: Prepared) -> str:
    """The command that was typed, with the data it found and without what may hold a password."""
    shown = [redact(a) for a in prepared.arguments]
    if prepared.settings.data is None and (found := os.environ.get("RESP_TUNE_DATA")):
        shown += ["--data", found]
    return shlex.join(["python", "-m", "resp_tune.search", *shown])


def _read_test(
    prepared: Prepared, study: optuna.Study, winner: TrialRecord, bundle: Bundle
) -> tuple[Scored | None, list[dict[str, Any]]]:
    """The winner on the test side. The reading is in the study before the side is opened."""
    readings = study.user_attrs.get(READINGS, [])
    test = prepared.problem.sides.test
    if test is None:
        return None, readings
    readings = declare_reading(readings, winner.number, bundle.details["weights_sha256"])
    study.set_user_attr(READINGS, readings)
    scored = score_test(bundle, prepared.problem, test, workers=prepared.machine.cpus)
    return scored, readings


def _summary(
    prepared: Prepared,
    trials: list[TrialRecord],
    winner: TrialRecord,
    scored: Scored | None,
) -> dict[str, Any]:
    settings, problem = prepared.settings, prepared.problem
    leaks = problem.sides.leaks(problem.dataset)
    last = winner.epochs[-1]
    validation = {k.removeprefix("val_"): v for k, v in last.items() if k.startswith("val_")}
    test = None
    if scored is not None:
        test = {
            **scored.metrics,
            "majority_accuracy": scored.majority,
            "intervals": {k: list(v) for k, v in scored.intervals.items()},
        }
    return {
        "name": prepared.name,
        "task": settings.task,
        "protocol": settings.protocol,
        "metric": settings.metric,
        "data": {
            "name": prepared.data_name,
            "synthetic": problem.dataset.synthetic,
            "recordings": len(problem.dataset.recordings),
            "notes": [*problem.dataset.problems, *problem.clips.dropped, *problem.sides.notes],
        },
        "classes": list(problem.sides.classes),
        "trials": files.count_states(trials),
        "winner": {
            "number": winner.number,
            "params": winner.values,
            "seeds": [winner.config.seed],
            "validation": {k: v for k, v in validation.items() if k in METRICS},
            "test": test,
        },
        "leaks": {k: v for k, v in asdict(leaks).items() if k in ("patients", "sessions")},
    }


def _into_mlflow(
    prepared: Prepared,
    study: optuna.Study,
    runs: SearchRuns,
    winner: TrialRecord,
    scored: Scored | None,
    bundle: Bundle,
    trials: list[TrialRecord],
) -> dict[str, Any]:
    """The reading of the test side, the registered model, and links."""
    weights = bundle.details["weights_sha256"]
    metrics = {} if scored is None else {f"test_{k}": v for k, v in scored.metrics.items()}
    if scored is not None:
        metrics["test_majority_accuracy"] = scored.majority
        for name, (low, high) in scored.intervals.items():
            metrics |= {f"test_{name}_low": low, f"test_{name}_high": high}
    run_id = runs.log_evaluation(
        number=winner.number,
        params=winner.config.as_dict(),
        metrics=metrics,
        tags={"resp_tune.weights_sha256": weights},
    )
    if run_id is None:
        raise RunError(
            f"the MLflow store '{redact(prepared.tracking_uri)}' is away: the winner is "
            f"{prepared.folder / 'winner'}; the same command with --name {prepared.name} "
            "registers it"
        )
    model = register_winner(
        prepared.tracking_uri,
        prepared.folder.parent,
        run_id=run_id,
        bundle=prepared.folder / "winner",
        tags={"resp_tune.search": prepared.name},
    )
    settings, run_ids = prepared.settings, runs.run_ids()
    sign = 1 if METRICS[settings.metric].mode == "max" else -1
    best = sorted((t for t in trials if t.score is not None), key=lambda t: -sign * (t.score or 0))
    links = search_links(
        prepared.tracking_uri,
        runs.experiment_id,
        prepared.name,
        settings.metric,
        METRICS[settings.metric].mode,
        [run_ids[t.number] for t in best[:COMPARED] if t.number in run_ids],
        study_id=study.user_attrs[STUDY_ID],
    )
    return {
        "tracking_uri": redact(prepared.tracking_uri),
        "experiment_id": runs.experiment_id,
        "parent_run_id": runs.parent_run_id,
        "model": model.name,
        "version": model.version,
        "links": links,
    }
