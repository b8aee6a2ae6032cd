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
from resp_tune.data.split import load_sides, save_sides
from resp_tune.errors import UserError
from resp_tune.evaluation.baseline_cache import baselines_of
from resp_tune.execution.tuner import check_some_finished
from resp_tune.harness import result_files
from resp_tune.harness.auto_packing import packed
from resp_tune.harness.finalize import finish
from resp_tune.harness.lock import held
from resp_tune.harness.remote_sync import mirrored
from resp_tune.harness.spec import SearchSpec
from resp_tune.harness.stages import run_rounds, wants_trials
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
from resp_tune.training.fingerprint import contents, save_contents
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


def run_search(prepared: SearchSpec, console: Console) -> Path:
    """Run, continue or extend a search; the path of its `summary.json`."""
    clock = time.monotonic()
    prepared.folder.mkdir(parents=True, exist_ok=True)
    database = prepared.folder / "study.db"
    with (
        held(prepared.folder),
        mirrored(prepared) as mirror,
        study_in_one_line(database),
        ThreadPoolExecutor(4) as pool,
        _event() as ended,
    ):
        remove_parts(prepared.folder)
        study = _open(prepared, database)
        mirror.opened(study)
        before = records(study, prepared.space)
        rerun = replicates(study, before)
        _say_continuing(before, rerun)
        if wants_trials(study, prepared):
            prepared = packed(prepared)
        # Recordings, MLflow's database and Ray keep one waiting in different ways: all at once.
        filling = pool.submit(_fill, prepared, console, ended)
        baselines = pool.submit(baselines_of, prepared.problem, prepared.machine.cpus)
        with _tracked(prepared, study, [*before, *rerun], pool) as tracked:
            run_rounds(prepared, study, mirror, tracked, filling, console)
            runs = tracked.result().runs
            trials = records(study, prepared.space)
            seconds = study.user_attrs.get(SECONDS, 0.0) + time.monotonic() - clock
            study.set_user_attr(SECONDS, seconds)
            result_files.write_trials(prepared.folder / "trials.csv", trials, runs.run_ids())
            result_files.write_epochs(prepared.folder / "epochs.csv", trials)
            result_files.write_replicates(
                prepared.folder / "replicates.csv", replicates(study, trials), runs.replicate_ids()
            )
            check_some_finished(trials)
            path = finish(prepared, study, mirror, runs, filling.result(), baselines.result())
        mirror.complete()
        return path


@contextmanager
def _event() -> Iterator[threading.Event]:
    """An event that is set on the way out: threads that are waited for should then hurry."""
    event = threading.Event()
    try:
        yield event
    finally:
        event.set()


def _open(prepared: SearchSpec, path: Path) -> optuna.Study:
    """The search's study and sides on disk, bound to what its trials mean."""
    settings = prepared.settings
    study = open_study(path, prepared.name, settings.metric, make_sampler(settings.sampler, 0))
    bind_settings(study, prepared.meaning())
    trials = study.get_trials(deepcopy=False)
    # A sampler that was seeded alike would suggest to a continued search what it did at first.
    seed = mix_seed(settings.seed, len(trials)) % 2**32
    study.sampler = make_sampler(settings.sampler, seed)
    if STUDY_ID not in study.user_attrs:
        study.set_user_attr(STUDY_ID, uuid.uuid4().hex)
    save_contents(prepared.folder, contents(prepared.problem, prepared.sources))
    if SPLIT not in study.user_attrs:
        study.set_user_attr(SPLIT, prepared.problem.sides.digest)
    _keep_sides(prepared)
    return study


def _keep_sides(prepared: SearchSpec) -> None:
    path = prepared.folder / "split.json"
    if path.exists():
        try:
            load_sides(path)
        except UserError:  # `prepare` has found that these sides are what it held
            log.info(f"'{path}' was damaged and is made again")
        else:
            return
    save_sides(prepared.problem.sides, path)


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
    prepared: SearchSpec,
    study: optuna.Study,
    past: Sequence[TrialRecord],
    pool: ThreadPoolExecutor,
) -> Iterator[Future[TrackingListener]]:
    """The search's runs in MLflow, opened by `pool`, ended in the state that the search ends in.

    `past`: trials and replicates of earlier runs, some of which MLflow may have missed. Where both
    the search and the opening fail, the search's failure is raised and the other one said.
    """

    def begin() -> TrackingListener:
        runs = _open_runs(prepared, study)
        tracked = TrackingListener(runs, prepared.settings.metric, prepared.trial_tags)
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
            cause = root_cause(unopened, prepared.tracking_uri)
            log.warning(f"MLflow's runs could not be opened either: {cause}")


def _open_runs(prepared: SearchSpec, study: optuna.Study) -> SearchRuns:
    settings, task = prepared.settings, prepared.problem.clips.task
    return SearchRuns(
        prepared.tracking_uri,
        prepared.folder.parent,
        prepared.name,
        metric=settings.metric,
        mode=METRICS[settings.metric].mode,
        params={
            "task": task.name,
            "task_classes": json.dumps(task.grouping, ensure_ascii=False),
            **{k: getattr(settings, k) for k in RECORDED},
            "space": prepared.space.name,
            "split_sha256": prepared.problem.sides.digest,
            "data": prepared.problem.dataset.root,
            "synthetic": prepared.problem.dataset.synthetic,
        },
        tags={},
        study_id=study.user_attrs[STUDY_ID],
        columns=list(prepared.space.parameters),
    )


def _fill(prepared: SearchSpec, console: Console, ended: threading.Event) -> FeatureCaches:
    """The feature stores of the search's recordings, filled where the space has few front ends.

    Given up once the search has `ended`. A cluster's nodes are filled once Ray runs.
    """
    workers, front_ends = prepared.machine.cpus, prepared.front_ends
    stores = FeatureCaches(None, prepared.sources, cache_limit_bytes())
    if len(front_ends) > FILLED_FIRST or prepared.cluster is not None:
        return stores
    columns = (TextColumn("log-mel frames"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("fill", total=None, visible=False)

        def progress(done: int, total: int) -> None:
            if ended.is_set():
                raise CancelledError
            bar.update(task, completed=done, total=total, visible=True)

        stores.fill(front_ends, workers=workers, progress=progress)
    return dataclasses.replace(stores, sound=frozenset(front_ends))
