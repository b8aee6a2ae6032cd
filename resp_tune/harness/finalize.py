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

from resp_tune.common.choices import COMPARED_RUNS
from resp_tune.common.fault_points import fault_point
from resp_tune.errors import RunError
from resp_tune.evaluation.score import (
    TestScore,
    predict_validation_split,
    score_test_split,
    write_bundle,
)
from resp_tune.harness import result_files
from resp_tune.harness.remote_sync import NullSync
from resp_tune.harness.select_winner import Winner, choose_winner, trained_networks
from resp_tune.harness.spec import SearchSpec
from resp_tune.harness.summary import summarise
from resp_tune.harness.test_access_log import access_entry, add_access
from resp_tune.reporting.report_page import render
from resp_tune.study.replicates import replicates
from resp_tune.study.study import READINGS, SECONDS, STUDY_ID, TrialRecord, ranked, records
from resp_tune.tracking.registry import register_winner
from resp_tune.tracking.search_run import SearchRuns
from resp_tune.tracking.ui_links import search_links
from resp_tune.tracking.uri import redact
from resp_tune.training.datamodule import FeatureCaches, make_feature_caches
from resp_tune.training.fingerprint import (
    TEST_KEPT,
    changed_recordings,
    data_digest,
    recording_hashes,
    save_recording_hashes,
)
from resp_tune.training.metrics import METRICS
from resp_tune.training.model_bundle import Bundle

log = logging.getLogger(__name__)

FLOAT32 = 9  # digits that tell any two of its numbers apart


def finalize(
    spec: SearchSpec,
    study: optuna.Study,
    sync: NullSync,
    runs: SearchRuns,
    caches: FeatureCaches,
    baselines: Mapping[str, Any],
) -> Path:
    """Everything that follows the last trial; the path of `summary.json`."""
    trials = records(study, spec.space)
    winner = choose_winner(spec, study, trials)
    folder, datamodule = spec.location.folder / "winner", spec.data.datamodule
    networks = trained_networks(spec, study.user_attrs[STUDY_ID], winner.runs, caches)
    bundle = write_bundle(folder, winner.runs[0], networks, datamodule, _details(spec, winner))
    fault_point("bundle-written")
    predictions = [predict_validation_split(bundle, datamodule, caches)]
    side = None if datamodule.split.test is None else _test_side(spec)
    scored, readings = _read_test(spec, study, sync, winner, bundle, side)
    if scored is not None:
        predictions.append(scored.predictions)
    every = pd.concat(predictions, ignore_index=True)
    result_files.write_csv(folder / "predictions.csv", every, digits=FLOAT32)
    everything = [*trials, *replicates(study, trials)]
    summary = {
        **summarise(spec, trials, winner, scored),
        "test_readings": readings,
        "baselines": dict(baselines),
        "seconds": result_files.seconds_spent(everything, study.user_attrs[SECONDS]),
        "mlflow": _into_mlflow(spec, study, runs, winner, scored, bundle, trials),
        "versions": result_files.versions(),
    }
    path = spec.location.folder / "summary.json"
    fault_point("summary-writes")
    result_files.write_summary(path, summary)
    fault_point("report-writes")
    render(spec.location.folder)
    return path


def _details(spec: SearchSpec, winner: Winner) -> dict[str, Any]:
    """What `config.json` says of where the model comes from."""
    options, datamodule = spec.options, spec.data.datamodule
    task = datamodule.clips.task
    score = winner.trial.score if winner.chosen is None else winner.chosen.mean
    return {
        "task": task.name,
        **({"task_classes": task.grouping} if task.grouping else {}),
        "protocol": options.protocol,
        "provenance": {
            "search": spec.location.name,
            "trial": winner.trial.number,
            "seeds": winner.seeds,
            "score": {options.metric: score},
            "data": spec.data.name,
            "synthetic": datamodule.dataset.synthetic,
            **options.split_spec.provenance(),
            "split_sha256": datamodule.split.digest,
            "command": command(spec),
            "versions": result_files.versions(),
        },
    }


def command(spec: SearchSpec) -> str:
    """The command that was typed, with the data it found and without what may hold a password."""
    shown = [redact(a) for a in spec.arguments]
    if spec.options.data is None and (found := os.environ.get("RESP_TUNE_DATA")):
        shown += ["--data", found]
    return shlex.join(["python", "-m", "resp_tune.search", *shown])


def _test_side(spec: SearchSpec) -> FeatureCaches:
    """The recordings of the test side, hashed and not yet read; what has changed is said."""
    folder, datamodule = spec.location.folder, spec.data.datamodule
    caches = make_feature_caches(datamodule, datamodule.split.test or (), spec.compute.machine.cpus)
    now = recording_hashes(datamodule, caches.sources)
    save_recording_hashes(folder, now, TEST_KEPT)
    if changed := changed_recordings(folder, now, TEST_KEPT):
        log.warning(
            f"the test side has changed since it was first read ({changed}): this is "
            "another reading, on record beside the first"
        )
    return caches


def _read_test(
    spec: SearchSpec,
    study: optuna.Study,
    sync: NullSync,
    winner: Winner,
    bundle: Bundle,
    side: FeatureCaches | None,
) -> tuple[TestScore | None, list[dict[str, Any]]]:
    """The winner on the test `side`. The reading is in the study before the side is opened."""
    readings = study.user_attrs.get(READINGS, [])
    datamodule, test = spec.data.datamodule, spec.data.datamodule.split.test
    if test is None or side is None:
        return None, readings
    recordings = data_digest(datamodule, side.sources)
    reading = access_entry(winner.trial.number, bundle.details["weights_sha256"], recordings)
    readings = add_access(readings, reading)
    study.set_user_attr(READINGS, readings)
    sync.record("the test side is read")
    fault_point("test-access")
    scored = score_test_split(bundle, datamodule, test, side, workers=spec.compute.machine.cpus)
    fault_point("test-scored")
    return scored, readings


def _into_mlflow(
    spec: SearchSpec,
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
        winner.trial.key,
        params={**winner.trial.config.as_dict(), "seed": ", ".join(map(str, winner.seeds))},
        metrics=metrics,
        tags={"resp_tune.weights_sha256": weights},
    )
    if run_id is None:
        raise RunError(
            f"the MLflow store '{redact(spec.location.tracking_uri)}' is away: the winner is "
            f"{spec.location.folder / 'winner'}; the same command with --name {spec.location.name} "
            "registers it"
        )
    model = register_winner(
        spec.location.tracking_uri,
        spec.location.storage,
        run_id=run_id,
        bundle=spec.location.folder / "winner",
        tags={"resp_tune.search": spec.location.name},
    )
    options, run_ids = spec.options, runs.run_ids()
    best = ranked(trials, options.metric)
    links = search_links(
        spec.location.tracking_uri,
        runs.experiment_id,
        spec.location.name,
        options.metric,
        METRICS[options.metric].mode,
        [run_ids[t.key] for t in best[:COMPARED_RUNS] if t.key in run_ids],
        study_id=study.user_attrs[STUDY_ID],
    )
    return {
        "tracking_uri": redact(spec.location.tracking_uri),
        "experiment_id": runs.experiment_id,
        "parent_run_id": runs.parent_run_id,
        "model": model.name,
        "version": model.version,
        "links": links,
    }
