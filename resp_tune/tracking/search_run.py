"""A search in MLflow: one parent run, below it a run a trial, written by the driver alone.

runs = SearchRuns(uri, storage, "first", metric="macro_f1", mode="max", params={}, tags={})
runs.start_trial(TrialKey(0), params=config, seed=17)
runs.log_epochs(TrialKey(0), [{"epoch": 1, "train_loss": 1.2, "val_macro_f1": 0.3}])
runs.end_trial(TrialKey(0), "finished", score=0.3, seconds=4.2)
runs.close("FINISHED")

Every write is idempotent: the driver may replay its whole study, and what is there stays as it is.
"""

from __future__ import annotations

import getpass
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from resp_tune.common.choices import State
from resp_tune.common.fault_points import fault_point
from resp_tune.common.trial_key import TrialKey
from resp_tune.errors import UserError
from resp_tune.tracking.client import connect, experiment_id
from resp_tune.tracking.saved_view import save_view
from resp_tune.tracking.tags import (
    KIND,
    METRIC,
    MODE,
    PARENT,
    RUNNING,
    SEARCH,
    STATE,
    STUDY,
    WEIGHTS,
    ParentStatus,
    runs_filter,
)
from resp_tune.tracking.trial_runs import RunKey, TrialRuns, metrics_of, params_of, tags_of
from resp_tune.tracking.uri import redact, root_cause
from resp_tune.tracking.write_queue import WriteQueue, is_permanent

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

CLOSE_SECONDS = 30.0
LINGER_SECONDS = 3.0  # nobody looks at a curve more often

_PARENT_STATE = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "interrupted"}


@dataclass
class _Reported:
    """Epochs of a run with their times, and how many of them are in the store."""

    epochs: list[tuple[dict[str, float], int]] = field(default_factory=list)
    written: int = 0


class SearchRuns:
    """The driver's handle on the MLflow runs of one search.

    The constructor finds or makes the experiment and the parent run, and raises `UserError` where
    that fails; afterwards nothing raises and nothing waits, except `run_ids`, `log_evaluation` and
    `close`, which wait for the queue, up to a bound.

    `study_id` tells two searches of one name on one store apart (a study that was deleted and
    begun anew, another user's): each gets a parent of its own. `columns` are the parameters that
    the search varies: they become columns of the saved view.
    """

    def __init__(
        self,
        uri: str,
        storage: Path,
        name: str,
        *,
        metric: str,
        mode: Literal["max", "min"],
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        study_id: str | None = None,
        columns: Sequence[str] = (),
    ) -> None:
        from mlflow.exceptions import MlflowException

        self.name, self.metric, self.mode = name, metric, mode
        self._common = {SEARCH: name} | ({STUDY: study_id} if study_id else {})
        self._client = connect(uri)
        try:
            self.experiment_id = experiment_id(self._client, uri, storage)
            found = list(_runs(self._client, self.experiment_id, runs_filter(name, study_id)))
            parent = self._open_parent(found, params, tags)
            save_view(
                self._client, self.experiment_id, name, metric, mode, columns, study_id=study_id
            )
        except MlflowException as error:
            raise UserError(
                f"the MLflow store '{redact(uri)}' cannot be written to "
                f"({root_cause(error, uri)}): give another --tracking-uri"
            ) from None
        self.parent_run_id = parent.info.run_id
        self._best = parent.data.metrics.get(f"best_{metric}")
        history = (
            []
            if self._best is None
            else self._client.get_metric_history(self.parent_run_id, "best_trial")
        )
        self._best_step = max((point.step for point in history), default=-1)
        self._children = TrialRuns(
            self._client,
            self.experiment_id,
            metric,
            {**self._common, PARENT: self.parent_run_id},
            [run for run in found if run.data.tags.get(PARENT) == self.parent_run_id],
        )
        self._told: dict[RunKey, _Reported] = {}
        self._writer = WriteQueue(uri)

    def _open_parent(
        self, found: Sequence[Run], params: Mapping[str, Any], tags: Mapping[str, str]
    ) -> Run:
        parent = next((run for run in found if run.data.tags.get(KIND) == "search"), None)
        mine = {**_origin(), **tags, **self._common, KIND: "search", STATE: RUNNING}
        mine |= {METRIC: self.metric, MODE: self.mode}
        if parent is None:
            parent = self._client.create_run(self.experiment_id, run_name=self.name, tags=mine)
        elif parent.info.status != "RUNNING":
            self._client.update_run(parent.info.run_id, status="RUNNING")
        known = parent.data.params
        # A parameter of a run cannot change; a search that grew says so in a tag.
        changed = {
            f"resp_tune.{key}": str(value)
            for key, value in params.items()
            if known.get(key, str(value)) != str(value)
        }
        self._client.log_batch(
            parent.info.run_id,
            params=params_of({k: v for k, v in params.items() if k not in known}),
            tags=tags_of({**mine, **changed}),
        )
        fault_point("mlflow-search-run")
        return parent

    def start_trial(
        self,
        trial: TrialKey,
        *,
        params: Mapping[str, Any],
        seed: int,
        tags: Mapping[str, str] | None = None,
        again: bool = False,
    ) -> None:
        """Find or create the run of `trial`; one that was interrupted runs again.

        With `again`, one that had ended runs as well.
        """
        key, now = RunKey(trial.kind, trial), _now()
        self._told[key] = _Reported()  # epochs from here on must not be written before this
        given, named = {**params, "seed": seed}, {**_origin(), **(tags or {})}
        self._writer.put(
            f"start of {key}",
            lambda: self._children.start(key, given, named, now, again=again),
        )

    def log_epochs(self, trial: TrialKey, epochs: Sequence[Mapping[str, float]]) -> None:
        """Log epoch results. Each has `epoch` (from 1; the step) and its metrics.

        All of a run within `LINGER_SECONDS`, or that wait for a slow store, go there in one batch,
        which costs little more than one of them. Epochs that are logged already are skipped.
        """
        key, now = RunKey(trial.kind, trial), _now()
        told = self._told.setdefault(key, _Reported())
        told.epochs.extend((dict(epoch), now) for epoch in epochs)
        count = len(told.epochs)
        self._writer.put(
            f"epochs of {key}",
            lambda: self._write_epochs(key, told, count),
            linger=LINGER_SECONDS,
        )

    def _write_epochs(self, key: RunKey, told: _Reported, count: int) -> None:
        """Let the first `count` be written, and with them all that have been told since."""
        if told.written >= count:
            return
        upto = len(told.epochs)
        try:
            self._children.log(key, told.epochs[told.written : upto])
        except Exception as error:
            if is_permanent(error):
                told.written = upto
            raise
        told.written = upto

    def end_trial(
        self,
        trial: TrialKey,
        state: State,
        *,
        score: float | None,
        seconds: float,
        error: str | None = None,
        micro_batch: int | None = None,
    ) -> None:
        """End a run in `state`, with its score (at its last epoch) under the metric's own name.

        `micro_batch`: what it ended with, which is less than its parameter where memory was short.
        """
        key, now = RunKey(trial.kind, trial), _now()
        self._told.pop(key, None)
        shown = score if score is not None and math.isfinite(score) else None
        metrics = {self.metric: shown, "total_seconds": seconds}
        self._writer.put(
            f"end of {key}",
            lambda: self._children.end(key, state, metrics, error, now, micro_batch),
        )

    def best(self, score: float, number: int) -> None:
        """Let the parent carry the best score so far, and whose it is; a lesser one is ignored."""
        now = _now()
        self._writer.put("best score", lambda: self._write_best(score, number, now))

    def _write_best(self, score: float, number: int, now: int) -> None:
        sign = 1 if self.mode == "max" else -1
        if self._best is not None and sign * score <= sign * self._best:
            return  # a replay passes all of them again
        metrics = {self.metric: score, f"best_{self.metric}": score, "best_trial": number}
        # Steps count the ended trials. MLflow shows the value of the highest step, and of the
        # latest millisecond on one step, in which two may fall: so no step is used twice.
        step = max(self._children.ended(), self._best_step + 1)
        self._client.log_batch(self.parent_run_id, metrics=metrics_of(metrics, step, now))
        self._best, self._best_step = score, step

    def run_ids(self, *, seconds: float = CLOSE_SECONDS) -> dict[TrialKey, str]:
        """Flush the queue, waiting at most `seconds`, and return the run ids of the trials."""
        self._writer.flush(seconds)
        return self._children.ids()

    def log_evaluation(
        self,
        trial: TrialKey,
        *,
        params: Mapping[str, Any],
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
        seconds: float = CLOSE_SECONDS,
    ) -> str | None:
        """Record a reading of the test side; its run id, or None while the store is away.

        The only run with `test_<metric>`. The tag `resp_tune.weights_sha256` tells readings of
        one trial's number apart: the same weights keep their run.
        """
        key, now = RunKey("evaluation", trial, tags.get(WEIGHTS, "")), _now()
        given, named, written = dict(params), {**_origin(), **tags}, list[str]()

        def write() -> None:
            written.append(self._children.evaluation(key, given, metrics, named, now))

        self._writer.put(f"evaluation of trial {trial.label}", write)
        self._writer.flush(seconds)
        return written[0] if written else None

    def close(self, status: ParentStatus, *, seconds: float = CLOSE_SECONDS) -> None:
        """End the parent, and trials still running as `interrupted`; write what is queued.

        Waits `seconds` at most and then says what is missing; the next run of the same command
        writes it.
        """
        now = _now()
        self._writer.put("end of interrupted trials", lambda: self._children.interrupt(now))
        self._writer.put("end of the search", lambda: self._end_parent(status, now))
        self._writer.close(seconds)

    def _end_parent(self, status: ParentStatus, now: int) -> None:
        self._client.set_tag(self.parent_run_id, STATE, _PARENT_STATE[status])
        self._client.set_terminated(self.parent_run_id, status=status, end_time=now)


def _runs(client: MlflowClient, experiment: str, query: str) -> Iterator[Run]:
    token = None
    while True:
        page = client.search_runs(
            [experiment],
            query,
            max_results=1000,
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        yield from page
        token = page.token
        if not token:
            return


def _now() -> int:
    return time.time_ns() // 1_000_000


def _origin() -> dict[str, str]:
    """What the UI shows as a run's source and user."""
    origin = {"mlflow.source.name": "resp_tune.search", "mlflow.source.type": "LOCAL"}
    try:
        return {**origin, "mlflow.user": getpass.getuser()}
    except (KeyError, OSError):  # a container's user without a name
        return origin
