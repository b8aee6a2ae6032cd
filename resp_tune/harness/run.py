"""Run a validated search to its result files. Starting, resuming and extending are one act."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import optuna
from rich.console import Console

from resp_tune.common.fault_points import fault_point
from resp_tune.common.paths import remove_parts
from resp_tune.common.timeline import span, timeline_table, write_trace
from resp_tune.data.split import Split, load_split, save_split
from resp_tune.errors import UserError
from resp_tune.execution.searcher import SLOT
from resp_tune.harness.background import background_setup
from resp_tune.harness.failures import Failures
from resp_tune.harness.finalize import Complete, finalize
from resp_tune.harness.lock import exclusive_lock
from resp_tune.harness.remote_sync import synchronize_storage
from resp_tune.harness.result_files import write_tables
from resp_tune.harness.spec import Compute, SearchSpec, trial_identity
from resp_tune.harness.stages import RayBackend, choose_trials_per_gpu, needs_trials, run_stages
from resp_tune.study.replicates import replicates
from resp_tune.study.samplers import make_sampler, resumed_sampler
from resp_tune.study.study import (
    SECONDS,
    SPLIT,
    STUDY_ID,
    TrialRecord,
    bind_settings,
    open_study,
    records,
    study_in_one_line,
)
from resp_tune.training.datamodule import recording_hashes, save_recording_hashes

log = logging.getLogger(__name__)


def run_search(
    spec: SearchSpec, console: Console, backend: Callable[[Compute], RayBackend] | None = None
) -> Path:
    """Run, resume or extend a search; return the path of its `summary.json`.

    `backend` makes what runs the trials: Ray Tune (default), or a stand-in that needs no processes.
    Raises `IncompleteError` if steps after the last trial failed that others do not depend on.
    """
    spec.location.folder.mkdir(parents=True, exist_ok=True)
    with exclusive_lock(spec.location.folder):
        return run_locked(spec, console, backend or RayBackend)


def run_locked(
    spec: SearchSpec,
    console: Console,
    backend: Callable[[Compute], RayBackend],
    complete: Complete = dict,
) -> Path:
    """Run a search as `run_search` does, in a folder whose lock the caller holds.

    `complete` returns what is written as `summary.json`, from what the search itself knows.
    """
    begun, location, failures = time.monotonic(), spec.location, Failures(spec.location)
    with failures, synchronize_storage(location) as sync, study_in_one_line(location.study_file):
        remove_parts(location.folder)
        fault_point("study-opens")
        with span("study opens"):
            study = prepare_study(spec)
        sync.opened(study)
        trials = records(study, spec.space)
        past = [*trials, *replicates(study, trials)]
        _log_resumption(past)
        if needs_trials(study, spec.budget, spec.options.stop):
            spec = choose_trials_per_gpu(spec)
        # Recordings, MLflow's database and Ray are slow for different reasons: all at once.
        with background_setup(spec, study, past, console, failures) as setup:
            run_stages(spec, study, backend(spec.compute), sync, setup, console)
            runs = setup.tracking.result().runs
            seconds = study.user_attrs.get(SECONDS, 0.0) + time.monotonic() - begun
            study.set_user_attr(SECONDS, seconds)
            write_tables(location.folder, study, spec.space, runs.run_ids(), failures)
            with span("last steps"):
                summary = finalize(spec, study, sync, setup, failures, complete)
        with failures.collected("trace.json could not be written"):
            write_trace(location.folder / "trace.json")
        log.debug(timeline_table(SLOT))
        with failures.collected(f"not everything could be uploaded to '{location.remote}'"):
            sync.complete()
    failures.raise_if_any(summary)
    return summary


def prepare_study(spec: SearchSpec) -> optuna.Study:
    """Open the search's study, bound to what its trials mean, and keep the split beside it."""
    options, location, datamodule = spec.options, spec.location, spec.data.datamodule
    path = location.study_file
    study = open_study(path, location.name, options.objective, make_sampler(options.sampler, 0))
    bind_settings(study, trial_identity(options, spec.space, spec.data))
    trials = study.get_trials(deepcopy=False)
    study.sampler = resumed_sampler(options.sampler, options.seed, len(trials))
    if STUDY_ID not in study.user_attrs:
        study.set_user_attr(STUDY_ID, uuid.uuid4().hex)
    save_recording_hashes(location.folder, recording_hashes(datamodule, spec.data.sources))
    if SPLIT not in study.user_attrs:
        study.set_user_attr(SPLIT, datamodule.split.digest)
    _keep_split(datamodule.split, location.folder / "split.json")
    return study


def _keep_split(split: Split, path: Path) -> None:
    if path.exists():
        try:
            load_split(path)
        except UserError:  # `validate` has checked by its digest that `split` is what it held
            log.info(f"'{path}' was damaged and is written again")
        else:
            return
    fault_point("split-saves")
    save_split(split, path)


def _log_resumption(past: Sequence[TrialRecord]) -> None:
    if not past:
        return
    ended = [bool(r.key.replicate) for r in past if r.state is not None]
    reruns = f" and {sum(ended)} replicates" if any(r.key.replicate for r in past) else ""
    interrupted = len(past) - len(ended)
    also = f"; {interrupted} were interrupted" if interrupted else ""
    log.info(f"resuming: {ended.count(False)} trials{reruns} have ended already{also}")
