"""One search, from prepared settings to its files. Continuing and extending are the same act."""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from resp_tune.common.paths import cache_limit_bytes, remove_parts
from resp_tune.data.split import load_split, save_split
from resp_tune.errors import UserError
from resp_tune.evaluation.baseline_cache import load_baselines
from resp_tune.execution.tuner import check_some_finished
from resp_tune.harness import result_files
from resp_tune.harness.finalize import finalize
from resp_tune.harness.lock import exclusive_lock
from resp_tune.harness.remote_sync import synchronize_storage
from resp_tune.harness.spec import SearchSpec
from resp_tune.harness.stages import choose_trials_per_gpu, run_rounds, wants_trials
from resp_tune.harness.tracking_listener import TrackingListener
from resp_tune.study.replicates import replicates
from resp_tune.study.samplers import make_sampler
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
from resp_tune.tracking.search_run import SearchRuns
from resp_tune.tracking.uri import root_cause
from resp_tune.training.datamodule import FILLED_FIRST, FeatureCaches
from resp_tune.training.fingerprint import recording_hashes, save_recording_hashes
from resp_tune.training.metrics import METRICS
from resp_tune.training.seeds import mix_seed

log = logging.getLogger(__name__)

RECORDED = (
    "protocol",
    "metric",
    "folds",
    "split_seed",
    "hold_out_device",
    "drop_shared_patients",
    "epochs",
    "seed",
    "scheduler",
    "sampler",
    "replicates",
)


def run_search(spec: SearchSpec, console: Console) -> Path:
    """Run, continue or extend a search; the path of its `summary.json`."""
    clock = time.monotonic()
    spec.folder.mkdir(parents=True, exist_ok=True)
    database = spec.folder / "study.db"
    with (
        exclusive_lock(spec.folder),
        synchronize_storage(spec) as sync,
        study_in_one_line(database),
        ThreadPoolExecutor(4) as pool,
        _event() as ended,
    ):
        remove_parts(spec.folder)
        study = _open(spec, database)
        sync.opened(study)
        before = records(study, spec.space)
        rerun = replicates(study, before)
        _say_continuing(before, rerun)
        if wants_trials(study, spec):
            spec = choose_trials_per_gpu(spec)
        # Recordings, MLflow's database and Ray keep one waiting in different ways: all at once.
        filling = pool.submit(_fill, spec, console, ended)
        baselines = pool.submit(load_baselines, spec.datamodule, spec.machine.cpus)
        with _tracked(spec, study, [*before, *rerun], pool) as tracked:
            run_rounds(spec, study, sync, tracked, filling, console)
            runs = tracked.result().runs
            trials = records(study, spec.space)
            seconds = study.user_attrs.get(SECONDS, 0.0) + time.monotonic() - clock
            study.set_user_attr(SECONDS, seconds)
            result_files.write_trials(spec.folder / "trials.csv", trials, runs.run_ids())
            result_files.write_epochs(spec.folder / "epochs.csv", trials)
            result_files.write_replicates(
                spec.folder / "replicates.csv", replicates(study, trials), runs.replicate_ids()
            )
            check_some_finished(trials)
            path = finalize(spec, study, sync, runs, filling.result(), baselines.result())
        sync.complete()
        return path


@contextmanager
def _event() -> Iterator[threading.Event]:
    """An event that is set on the way out: threads that are waited for should then hurry."""
    event = threading.Event()
    try:
        yield event
    finally:
        event.set()


def _open(spec: SearchSpec, path: Path) -> optuna.Study:
    """The search's study and sides on disk, bound to what its trials mean."""
    options = spec.options
    study = open_study(path, spec.name, options.metric, make_sampler(options.sampler, 0))
    bind_settings(study, spec.meaning())
    trials = study.get_trials(deepcopy=False)
    # A sampler that was seeded alike would suggest to a continued search what it did at first.
    seed = mix_seed(options.seed, len(trials)) % 2**32
    study.sampler = make_sampler(options.sampler, seed)
    if STUDY_ID not in study.user_attrs:
        study.set_user_attr(STUDY_ID, uuid.uuid4().hex)
    save_recording_hashes(spec.folder, recording_hashes(spec.datamodule, spec.sources))
    if SPLIT not in study.user_attrs:
        study.set_user_attr(SPLIT, spec.datamodule.split.digest)
    _keep_sides(spec)
    return study


def _keep_sides(spec: SearchSpec) -> None:
    path = spec.folder / "split.json"
    if path.exists():
        try:
            load_split(path)
        except UserError:  # `validate` has found that these sides are what it held
            log.info(f"'{path}' was damaged and is made again")
        else:
            return
    save_split(spec.datamodule.split, path)


def _say_continuing(before: Sequence[TrialRecord], rerun: Sequence[TrialRecord]) -> None:
    if not before:
        return
    told = [f"{sum(r.state is not None for r in before)} trials"]
    if rerun:
        told.append(f"{sum(r.state is not None for r in rerun)} replicates")
    cut_off = sum(r.state is None for r in (*before, *rerun))
    also = f"; {cut_off} were cut off" if cut_off else ""
    log.info(f"continuing: {' and '.join(told)} have ended already{also}")


@contextmanager
def _tracked(
    spec: SearchSpec,
    study: optuna.Study,
    past: Sequence[TrialRecord],
    pool: ThreadPoolExecutor,
) -> Iterator[Future[TrackingListener]]:
    """The search's runs in MLflow, opened by `pool`, ended in the state that the search ends in.

    `past`: trials and replicates of earlier runs, some of which MLflow may have missed. Where both
    the search and the opening fail, the search's failure is raised and the other one said.
    """

    def begin() -> TrackingListener:
        runs = _open_runs(spec, study)
        tracked = TrackingListener(runs, spec.options.metric, spec.trial_tags)
        tracked.replay(past)
        return tracked

    opening = pool.submit(begin)
    status: Any = "FAILED"
    failure: Exception | None = None
    try:
        yield opening
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    except Exception as error:
        failure = error
        raise
    finally:
        unopened = opening.exception()
        if unopened is None:
            opening.result().runs.close(status)
        elif unopened is not failure:
            cause = root_cause(unopened, spec.tracking_uri)
            log.warning(f"MLflow's runs could not be opened either: {cause}")


def _open_runs(spec: SearchSpec, study: optuna.Study) -> SearchRuns:
    options, task = spec.options, spec.datamodule.clips.task
    return SearchRuns(
        spec.tracking_uri,
        spec.folder.parent,
        spec.name,
        metric=options.metric,
        mode=METRICS[options.metric].mode,
        params={
            "task": task.name,
            "task_classes": json.dumps(task.grouping, ensure_ascii=False),
            **{k: getattr(options, k) for k in RECORDED},
            "space": spec.space.name,
            "split_sha256": spec.datamodule.split.digest,
            "data": spec.datamodule.dataset.root,
            "synthetic": spec.datamodule.dataset.synthetic,
        },
        tags={},
        study_id=study.user_attrs[STUDY_ID],
        columns=list(spec.space.parameters),
    )


def _fill(spec: SearchSpec, console: Console, ended: threading.Event) -> FeatureCaches:
    """The feature stores of the search's recordings, filled where the space has few front ends.

    Given up once the search has `ended`. A cluster's nodes are filled once Ray runs.
    """
    workers, front_ends = spec.machine.cpus, spec.front_ends
    caches = FeatureCaches(None, spec.sources, cache_limit_bytes())
    if len(front_ends) > FILLED_FIRST or spec.cluster is not None:
        return caches
    columns = (TextColumn("log-mel frames"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("fill", total=None, visible=False)

        def progress(done: int, total: int) -> None:
            if ended.is_set():
                raise CancelledError
            bar.update(task, completed=done, total=total, visible=True)

        caches.fill(front_ends, workers=workers, progress=progress)
    return dataclasses.replace(caches, filled=frozenset(front_ends))
