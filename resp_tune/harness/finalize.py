"""The end of a search: the winner and its one test, the files, MLflow's registry, the report."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna
import pandas as pd

from resp_tune.errors import RunError
from resp_tune.evaluation.score import (
    TestScore,
    score_test,
    score_validation,
    write_bundle,
)
from resp_tune.harness import result_files
from resp_tune.harness.remote_sync import NullSync
from resp_tune.harness.select_winner import Winner, choose_winner, trained_networks
from resp_tune.harness.spec import SearchSpec
from resp_tune.harness.summary import summarise
from resp_tune.harness.test_access_log import reading_of, with_reading
from resp_tune.reporting.report_page import render
from resp_tune.study.replicates import replicates
from resp_tune.study.study import READINGS, SECONDS, STUDY_ID, TrialRecord, ranked, records
from resp_tune.tracking.registry import register_winner
from resp_tune.tracking.search_run import SearchRuns
from resp_tune.tracking.ui_links import search_links
from resp_tune.tracking.uri import redact
from resp_tune.training.datamodule import FeatureCaches, stores_of
from resp_tune.training.fingerprint import (
    TEST_KEPT,
    changes,
    contents,
    data_digest,
    save_contents,
)
from resp_tune.training.metrics import METRICS
from resp_tune.training.model_bundle import Bundle

log = logging.getLogger(__name__)

FLOAT32 = 9  # digits that tell any two of its numbers apart
COMPARED = 3  # runs that the link to MLflow's comparison opens


def finish(
    prepared: SearchSpec,
    study: optuna.Study,
    mirror: NullSync,
    runs: SearchRuns,
    stores: FeatureCaches,
    baselines: Mapping[str, Any],
) -> Path:
    """Everything that follows the last trial; the path of `summary.json`."""
    trials = records(study, prepared.space)
    winner = choose_winner(prepared, study, trials)
    folder, problem = prepared.folder / "winner", prepared.problem
    networks = trained_networks(prepared, study.user_attrs[STUDY_ID], winner.runs, stores)
    bundle = write_bundle(folder, winner.runs[0], networks, problem, _details(prepared, winner))
    predictions = [score_validation(bundle, problem, stores)]
    side = None if problem.sides.test is None else _test_side(prepared)
    scored, readings = _read_test(prepared, study, mirror, winner, bundle, side)
    if scored is not None:
        predictions.append(scored.predictions)
    every = pd.concat(predictions, ignore_index=True)
    result_files.write_csv(folder / "predictions.csv", every, digits=FLOAT32)
    everything = [*trials, *replicates(study, trials)]
    summary = {
        **summarise(prepared, trials, winner, scored),
        "test_readings": readings,
        "baselines": dict(baselines),
        "seconds": result_files.seconds_spent(everything, study.user_attrs[SECONDS]),
        "mlflow": _into_mlflow(prepared, study, runs, winner, scored, bundle, trials),
        "versions": result_files.versions(),
    }
    path = prepared.folder / "summary.json"
    result_files.write_summary(path, summary)
    render(prepared.folder)
    return path


def _details(prepared: SearchSpec, winner: Winner) -> dict[str, Any]:
    """What `config.json` says of where the model comes from."""
    settings, problem = prepared.settings, prepared.problem
    task = problem.clips.task
    score = winner.trial.score if winner.chosen is None else winner.chosen.mean
    return {
        "task": task.name,
        **({"task_classes": task.grouping} if task.grouping else {}),
        "protocol": settings.protocol,
        "provenance": {
            "search": prepared.name,
            "trial": winner.trial.number,
            "seeds": winner.seeds,
            "score": {settings.metric: score},
            "data": prepared.data_name,
            "synthetic": problem.dataset.synthetic,
            **settings.sides(),
            "split_sha256": problem.sides.digest,
            "command": command(prepared),
            "versions": result_files.versions(),
        },
    }


def command(prepared: SearchSpec) -> str:
    """The command that was typed, with the data it found and without what may hold a password."""
    shown = [redact(a) for a in prepared.arguments]
    if prepared.settings.data is None and (found := os.environ.get("RESP_TUNE_DATA")):
        shown += ["--data", found]
    return shlex.join(["python", "-m", "resp_tune.search", *shown])


def _test_side(prepared: SearchSpec) -> FeatureCaches:
    """The recordings of the test side, hashed and not yet read; what has changed is said."""
    folder, problem = prepared.folder, prepared.problem
    stores = stores_of(problem, problem.sides.test or (), prepared.machine.cpus)
    now = contents(problem, stores.sources)
    save_contents(folder, now, TEST_KEPT)
    if changed := changes(folder, now, TEST_KEPT):
        log.warning(
            f"the test side has changed since it was first read ({changed}): this is "
            "another reading, on record beside the first"
        )
    return stores


def _read_test(
    prepared: SearchSpec,
    study: optuna.Study,
    mirror: NullSync,
    winner: Winner,
    bundle: Bundle,
    side: FeatureCaches | None,
) -> tuple[TestScore | None, list[dict[str, Any]]]:
    """The winner on the test `side`. The reading is in the study before the side is opened."""
    readings = study.user_attrs.get(READINGS, [])
    problem, test = prepared.problem, prepared.problem.sides.test
    if test is None or side is None:
        return None, readings
    recordings = data_digest(problem, side.sources)
    reading = reading_of(winner.trial.number, bundle.details["weights_sha256"], recordings)
    readings = with_reading(readings, reading)
    study.set_user_attr(READINGS, readings)
    mirror.record("the test side is read")
    return score_test(bundle, problem, test, side, workers=prepared.machine.cpus), readings


def _into_mlflow(
    prepared: SearchSpec,
    study: optuna.Study,
    runs: SearchRuns,
    winner: Winner,
    scored: TestScore | None,
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
        number=winner.trial.number,
        params={**winner.trial.config.as_dict(), "seed": ", ".join(map(str, winner.seeds))},
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
    best = ranked(trials, settings.metric)
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
