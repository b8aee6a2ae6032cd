"""What a search prepares in threads while Ray starts: feature caches, baselines, MLflow runs."""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import optuna
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from resp_tune.common.fault_points import fault_point
from resp_tune.common.text import one_line
from resp_tune.common.timeline import span
from resp_tune.evaluation.baselines import load_baselines
from resp_tune.features.cache import FeatureCaches
from resp_tune.harness.failures import Failures
from resp_tune.harness.listeners import TrackingListener
from resp_tune.harness.options import SearchOptions
from resp_tune.harness.spec import SearchData, SearchLocation, SearchSpec
from resp_tune.space.search_space import SearchSpace
from resp_tune.study.study import STUDY_ID, TrialRecord
from resp_tune.tracking.search_run import SearchRuns
from resp_tune.tracking.tags import ParentStatus, SearchRef, Tag, encoder_tags
from resp_tune.tracking.uri import root_cause
from resp_tune.training.bundled_encoder import describe_encoder
from resp_tune.training.datamodule import DataModule
from resp_tune.training.metrics import METRICS

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BackgroundSetup:
    """Futures of the filled caches, of the baselines, and of the open MLflow runs of a search."""

    caches: Future[FeatureCaches]
    baselines: Future[Mapping[str, Any]]
    tracking: Future[TrackingListener]


@contextmanager
def background_setup(
    spec: SearchSpec,
    study: optuna.Study,
    past: Sequence[TrialRecord],
    console: Console,
    failures: Failures,
) -> Iterator[BackgroundSetup]:
    """Yield the futures of what a search prepares in the background.

    `past` are trials and replicates of earlier runs, some of which MLflow may have missed. On exit
    the MLflow runs end in the state that the search ends in, and what still runs is cancelled.
    Entries that MLflow has not got by then are added to `failures`.
    """
    ended, datamodule, cpus = threading.Event(), spec.data.datamodule, spec.compute.machine.cpus
    on_cluster = spec.compute.cluster is not None
    with ThreadPoolExecutor(3, thread_name_prefix="background") as pool:

        def stop_if_ended() -> None:
            if ended.is_set():
                raise CancelledError

        def baselines() -> Mapping[str, Any]:
            caches.result()  # which trials wait for: band statistics would take cores from it
            with span("baselines"):
                return load_baselines(datamodule, cpus, stop_if_ended)

        workers = 0 if on_cluster else cpus
        caches = pool.submit(_fill_caches, spec.data, workers, console, stop_if_ended)
        setup = BackgroundSetup(
            caches,
            pool.submit(baselines),
            pool.submit(_open_tracking, spec, study.user_attrs[STUDY_ID], past),
        )
        error: BaseException | None = None
        try:
            yield setup
        except BaseException as e:
            error = e
            raise
        finally:
            ended.set()
            with span("MLflow runs end"):
                _close_runs(setup.tracking, spec.location.tracking_uri, error, failures)


def _fill_caches(
    data: SearchData, workers: int, console: Console, stop_if_ended: Callable[[], None]
) -> FeatureCaches:
    """Return the search's feature caches, filled by `workers` processes.

    With 0 workers nothing is filled: on a cluster, Ray has to run first.
    """
    caches = data.caches
    if not workers or not data.prefilled:
        return caches
    what = "frames of the encoder" if data.encoders else "log-mel frames"
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn())
    hidden = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task("fill", total=None, visible=False)

        def progress(done: int, total: int) -> None:
            stop_if_ended()
            bar.update(task, completed=done, total=total, visible=True)

        with span("feature caches"):
            caches.fill(data.prefilled, workers=workers, progress=progress)
    return dataclasses.replace(caches, filled=frozenset(data.prefilled))


@span("MLflow opens")
def _open_tracking(
    spec: SearchSpec, study_id: str, past: Sequence[TrialRecord]
) -> TrackingListener:
    fault_point("mlflow-opens")
    options, location, space = spec.options, spec.location, spec.space
    runs = SearchRuns(
        location.tracking_uri,
        location.storage,
        search_ref(location, options.objective, study_id),
        params=run_params(options, spec.data.datamodule, space),
        columns=list(space.parameters),
    )
    encoders = {
        e.given: encoder_tags(describe_encoder(e)) | {Tag.ENCODER_SETTINGS: e.settings_sha256}
        for e in spec.data.encoders
    }
    tags = spec.compute.trial_tags
    listener = TrackingListener(runs, options.objective, tags, encoders)
    listener.replay(past)
    return listener


def search_ref(location: SearchLocation, metric: str, study_id: str) -> SearchRef:
    """Return the identity of a search in MLflow."""
    own = (location.outer_fold, location.parent_run)
    return SearchRef(location.name, metric, METRICS[metric].mode, study_id, *own)


def run_params(
    options: SearchOptions, datamodule: DataModule, space: SearchSpace
) -> dict[str, Any]:
    """Return the parameters of a search's own run in MLflow."""
    task = datamodule.clips.task
    return {
        "task": task.name,
        "task_classes": json.dumps(task.grouping, ensure_ascii=False),
        **options.recorded(),
        "space": space.name,
        "split_sha256": datamodule.split.digest,
        "data": one_line(datamodule.dataset.root),
        "synthetic": datamodule.dataset.synthetic,
    }


def _close_runs(
    tracking: Future[TrackingListener], uri: str, error: BaseException | None, failures: Failures
) -> None:
    """End the MLflow runs; when they could not be opened, the search's own error is raised."""
    opening_error = tracking.exception()
    if opening_error is None:
        state: ParentStatus = "FAILED" if error is not None else "FINISHED"
        if isinstance(error, KeyboardInterrupt):
            state = "KILLED"
        if (missing := tracking.result().runs.close(state)) is not None:
            failures.add(missing)
    elif opening_error is not error:
        log.warning(f"MLflow's runs could not be opened either: {root_cause(opening_error, uri)}")
