"""What a search prepares in threads while Ray starts: feature caches, baselines, MLflow runs."""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import optuna
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from resp_tune.common.fault_points import fault_point
from resp_tune.common.paths import cache_limit_bytes
from resp_tune.config import FrontEnd
from resp_tune.evaluation.baseline_cache import load_baselines
from resp_tune.harness.spec import SearchData, SearchSpec
from resp_tune.harness.tracking_listener import TrackingListener
from resp_tune.study.study import STUDY_ID, TrialRecord
from resp_tune.tracking.search_run import SearchRuns
from resp_tune.tracking.tags import SearchRef
from resp_tune.tracking.uri import root_cause
from resp_tune.training.datamodule import FeatureCaches
from resp_tune.training.metrics import METRICS

log = logging.getLogger(__name__)


class BackgroundSetup:
    """Futures of the filled caches, of the baselines, and of the open MLflow runs of a search.

    `past` are trials and replicates of earlier runs, some of which MLflow may have missed. On exit
    the MLflow runs end in the state that the search ends in, and what still runs is cancelled.
    """

    caches: Future[FeatureCaches]
    baselines: Future[Mapping[str, Any]]
    tracking: Future[TrackingListener]

    def __init__(
        self, spec: SearchSpec, study: optuna.Study, past: Sequence[TrialRecord], console: Console
    ) -> None:
        self._spec, self._study, self._past, self._console = spec, study, past, console
        self._ended = threading.Event()

    def __enter__(self) -> BackgroundSetup:
        data, cpus = self._spec.data, self._spec.compute.machine.cpus
        # A cluster's nodes are filled once Ray runs.
        first = data.prefilled if self._spec.compute.cluster is None else ()
        self._pool = ThreadPoolExecutor(3)
        self.caches = self._pool.submit(self._fill_caches, data, first, cpus)
        self.baselines = self._pool.submit(load_baselines, data.datamodule, cpus)
        self.tracking = self._pool.submit(self._open_tracking)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        try:
            self._close_runs(error)
        finally:
            self._pool.shutdown()

    def _fill_caches(
        self, data: SearchData, front_ends: Sequence[FrontEnd], workers: int
    ) -> FeatureCaches:
        """Return the search's feature caches, with those of `front_ends` filled."""
        caches = FeatureCaches(None, data.sources, cache_limit_bytes())
        if not front_ends:
            return caches
        columns = (TextColumn("log-mel frames"), BarColumn(), MofNCompleteColumn())
        hidden = not self._console.is_terminal
        with Progress(*columns, console=self._console, transient=True, disable=hidden) as bar:
            task = bar.add_task("fill", total=None, visible=False)

            def progress(done: int, total: int) -> None:
                if self._ended.is_set():
                    raise CancelledError
                bar.update(task, completed=done, total=total, visible=True)

            caches.fill(front_ends, workers=workers, progress=progress)
        return dataclasses.replace(caches, filled=frozenset(front_ends))

    def _open_tracking(self) -> TrackingListener:
        fault_point("mlflow-opens")
        options, location = self._spec.options, self._spec.location
        datamodule, space = self._spec.data.datamodule, self._spec.space
        task = datamodule.clips.task
        runs = SearchRuns(
            location.tracking_uri,
            location.storage,
            SearchRef(
                location.name,
                options.metric,
                METRICS[options.metric].mode,
                self._study.user_attrs[STUDY_ID],
            ),
            params={
                "task": task.name,
                "task_classes": json.dumps(task.grouping, ensure_ascii=False),
                **options.recorded(),
                "space": space.name,
                "split_sha256": datamodule.split.digest,
                "data": datamodule.dataset.root,
                "synthetic": datamodule.dataset.synthetic,
            },
            tags={},
            columns=list(space.parameters),
        )
        listener = TrackingListener(runs, options.metric, self._spec.compute.trial_tags)
        listener.replay(self._past)
        return listener

    def _close_runs(self, error: BaseException | None) -> None:
        """End the MLflow runs; when they could not be opened, the search's own error is raised."""
        opening_error = self.tracking.exception()
        if opening_error is None:
            self.tracking.result().runs.close(_run_status(error))
        elif opening_error is not error:
            cause = root_cause(opening_error, self._spec.location.tracking_uri)
            log.warning(f"MLflow's runs could not be opened either: {cause}")


def _run_status(error: BaseException | None) -> Any:
    if error is None:
        return "FINISHED"
    return "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
