"""Write the runs below a search's parent run: those of trials, replicates and evaluations.

`start_trial`, `log_epochs` and `end_trial` put what is to be written into a queue and return; it is
written on the thread of the queue. Each may be called again with the same arguments, after a
partial failure or in a replay: then only what is missing is written.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from resp_tune.common.choices import State
from resp_tune.common.fault_points import fault_point
from resp_tune.common.retry_queue import RetryQueue
from resp_tune.common.trial_key import TrialKey
from resp_tune.tracking.client import is_permanent
from resp_tune.tracking.tags import INTERRUPTED, RUNNING, STATUS, Kind, Tag, conditions, origin

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run


class RunKey(NamedTuple):
    """The identity of a run below its parent; new weights make a new evaluation of a trial."""

    kind: Kind
    trial: TrialKey
    weights: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.trial.label}"

    def tags(self) -> dict[str, str]:
        """Return the tags that identify the run."""
        tags = {Tag.KIND: self.kind, Tag.NUMBER: str(self.trial.number)}
        if self.trial.replicate:
            tags[Tag.REPLICATE] = str(self.trial.replicate)
        return tags | {Tag.WEIGHTS: self.weights} if self.weights else tags


LINGER_SECONDS = 3.0  # epochs wait so long for others of their run; curves need no more
_MOST_IN_A_BATCH = 1000  # metrics: the limit of the store
_LONGEST_ERROR = 2000  # characters; a tag holds 8000

_Epochs = list[tuple[dict[str, float], int]]  # of one run, each with its time in ms


@dataclass
class _Run:
    """A run as MLflow has it."""

    run_id: str
    status: str
    tags: dict[str, str]
    params: Mapping[str, str] = field(default_factory=dict)
    steps: set[int] | None = None  # that are logged; None if not read yet

    @property
    def end(self) -> str | None:
        """Return the state in which it ended; None if it runs or was only interrupted."""
        state = self.tags.get(Tag.STATE)
        return state if state in STATUS and self.status != "RUNNING" else None


class TrialRuns:
    """The runs of the trials, replicates and evaluations of one search."""

    def __init__(
        self,
        client: MlflowClient,
        experiment: str,
        metric: str,
        common: Mapping[str, str],
        existing: Iterable[Run],
        queue: RetryQueue,
    ) -> None:
        self._client, self._experiment, self._metric = client, experiment, metric
        self._common = dict(common)
        self._queue = queue
        self._waiting: dict[RunKey, _Epochs] = {}
        self._uncertain: set[RunKey] = set()
        self._runs: dict[RunKey, _Run] = {}
        for run in existing:
            key = _key_of(run)
            # If a user copied a run, the oldest one counts.
            if key is not None and key not in self._runs:
                self._runs[key] = _as_run(run)

    def ids(self) -> dict[TrialKey, str]:
        """Return the run ids of trials and replicates."""
        items = list(self._runs.items())
        return {key.trial: run.run_id for key, run in items if key.kind == key.trial.kind}

    def ended(self) -> int:
        """Return the number of trials that have ended."""
        items = list(self._runs.items())
        return sum(key.kind == "trial" and run.end is not None for key, run in items)

    def start_trial(
        self,
        trial: TrialKey,
        *,
        params: Mapping[str, Any],
        seed: int,
        tags: Mapping[str, str] | None = None,
        again: bool = False,
    ) -> None:
        """Find or create the run of `trial`, and resume it if it was interrupted.

        With `again`, a run that had ended is resumed as well.
        """
        key, now = RunKey(trial.kind, trial), now_ms()
        self._waiting[key] = []  # later epochs must not be written before this start
        all_params, all_tags = {**params, "seed": seed}, {**origin(), **(tags or {})}
        self._queue.put(
            f"start of {key}", lambda: self.write_start(key, all_params, all_tags, now, again=again)
        )

    def log_epochs(self, trial: TrialKey, epochs: Sequence[Mapping[str, float]]) -> None:
        """Log epoch results, each with `epoch` (the step, from 1) and its metrics.

        Epochs of a run within `LINGER_SECONDS`, or that wait for a slow store, form one batch,
        which costs little more than one epoch. Epochs that MLflow has are skipped.
        """
        key, now = RunKey(trial.kind, trial), now_ms()
        waiting = self._waiting.setdefault(key, [])
        waiting += [(dict(epoch), now) for epoch in epochs]
        self._queue.put(
            f"epochs of {key}", lambda: self._write_waiting(key, waiting), linger=LINGER_SECONDS
        )

    def _write_waiting(self, key: RunKey, waiting: _Epochs) -> None:
        """Write the epochs that wait, those that were reported after this was queued as well."""
        count = len(waiting)
        try:
            self._write_epochs(key, waiting[:count])
        except Exception as error:
            if is_permanent(error):
                del waiting[:count]
            raise
        del waiting[:count]

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
        """End a run in `state`, with its score at its last epoch under the name of the metric.

        `micro_batch` is the one at the end, smaller than the parameter if memory was short.
        """
        key, now = RunKey(trial.kind, trial), now_ms()
        self._waiting.pop(key, None)
        finite = score if score is not None and math.isfinite(score) else None
        metrics = {self._metric: finite, "total_seconds": seconds}
        self._queue.put(
            f"end of {key}", lambda: self.write_end(key, state, metrics, error, now, micro_batch)
        )

    def write_start(
        self,
        key: RunKey,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        now: int,
        *,
        again: bool = False,
    ) -> _Run:
        """Find or create the run, and set it to running, with its parameters.

        A run that ended is not touched unless it runs `again`. One with other parameters is
        deleted: another driver gave its number to a trial that is not in the resumed study.
        """
        run = self._runs.get(key)
        if run is not None and _contradict(run.params, params):
            self._client.delete_run(run.run_id)
            del self._runs[key]
            run = None
        run = run or self._create(key, tags, now)
        if run.end is not None and not again:
            return run
        if run.status != "RUNNING":
            self._client.update_run(run.run_id, status="RUNNING")
            run.status = "RUNNING"
        if not run.params or run.tags.get(Tag.STATE) != RUNNING:
            write(self._client, run.run_id, params=params, tags={**tags, Tag.STATE: RUNNING})
            run.tags[Tag.STATE], run.params = RUNNING, {k: str(v) for k, v in params.items()}
        return run

    def _create(self, key: RunKey, tags: Mapping[str, str], now: int) -> _Run:
        identity = {**self._common, **key.tags()}
        if key in self._uncertain:
            # The last attempt failed here, but may have succeeded in the store.
            runs = self._client.search_runs([self._experiment], conditions(identity))
            if runs:
                self._runs[key] = _as_run(runs[0])
                return self._runs[key]
        self._uncertain.add(key)
        run = self._client.create_run(
            self._experiment,
            start_time=now,
            tags={**tags, **identity, Tag.STATE: RUNNING},
            run_name=str(key).replace(" ", "-").replace("/", "-"),
        )
        self._uncertain.discard(key)
        self._runs[key] = _Run(run.info.run_id, "RUNNING", dict(run.data.tags), steps=set())
        fault_point("mlflow-trial-created")
        return self._runs[key]

    def _write_epochs(self, key: RunKey, epochs: Sequence[tuple[Mapping[str, float], int]]) -> None:
        """Log epochs, each with its time in ms, in one batch; those that MLflow has are skipped."""
        if not epochs or (run := self._started(key)).end is not None:
            return
        if run.steps is None:
            name = next(name for name in epochs[0][0] if name != "epoch")
            history = self._client.get_metric_history(run.run_id, name)
            run.steps = {metric.step for metric in history}
        new = {int(row["epoch"]): (row, when) for row, when in epochs}
        new = {step: entry for step, entry in new.items() if step not in run.steps}
        metrics = []
        for step, (row, when) in new.items():
            metrics += metrics_of(self._ordered(row), step, when)
        for start in range(0, len(metrics), _MOST_IN_A_BATCH):
            self._client.log_batch(run.run_id, metrics[start : start + _MOST_IN_A_BATCH])
        run.steps |= new.keys()

    def _ordered(self, epoch: Mapping[str, float]) -> dict[str, float]:
        # MLflow's page for comparing runs starts with the metric that was logged first.
        first = f"val_{self._metric}"
        names = sorted((name for name in epoch if name != "epoch"), key=lambda name: name != first)
        return {name: epoch[name] for name in names}

    def _started(self, key: RunKey) -> _Run:
        if key not in self._runs:
            raise LookupError(f"{key} was never started")
        return self._runs[key]

    def write_end(
        self,
        key: RunKey,
        state: State,
        metrics: Mapping[str, float | None],
        error: str | None,
        now: int,
        micro_batch: int | None = None,
    ) -> None:
        """End the run in `state`, unless it has ended so already."""
        run = self._started(key)
        if run.end == state:
            return
        tags: dict[str, str] = {Tag.STATE: state}
        if error:
            tags["resp_tune.error"] = error[:_LONGEST_ERROR]
        if micro_batch is not None:  # a tag, since a parameter cannot change
            tags[Tag.MICRO_BATCH] = str(micro_batch)
        values = metrics_of(metrics, max(run.steps or {0}), now)
        write(self._client, run.run_id, values, tags=tags)
        self._client.set_terminated(run.run_id, status=STATUS[state], end_time=now)
        run.tags.update(tags)
        run.status = STATUS[state]
        fault_point("mlflow-trial-ended")

    def interrupt(self, now: int) -> None:
        """End the runs that still run as KILLED and `interrupted`; `start_trial` resumes them."""
        for run in list(self._runs.values()):
            if run.status == "RUNNING":
                self._client.set_tag(run.run_id, Tag.STATE, INTERRUPTED)
                self._client.set_terminated(run.run_id, status="KILLED", end_time=now)
                run.tags[Tag.STATE], run.status = INTERRUPTED, "KILLED"


def _key_of(run: Run) -> RunKey | None:
    tags = run.data.tags
    kind = next((kind for kind in get_args(Kind) if kind == tags.get(Tag.KIND)), None)
    number, replicate = tags.get(Tag.NUMBER, ""), tags.get(Tag.REPLICATE, "0")
    if kind is None or not number.isdecimal() or not replicate.isdecimal():
        return None
    weights = tags.get(Tag.WEIGHTS, "") if kind == "evaluation" else ""
    return RunKey(kind, TrialKey(int(number), int(replicate)), weights)


def _as_run(run: Run) -> _Run:
    return _Run(run.info.run_id, run.info.status, dict(run.data.tags), run.data.params)


def _contradict(known: Mapping[str, str], params: Mapping[str, Any]) -> bool:
    """Return whether a parameter differs, other than the micro-batch, which may shrink."""
    both = known.keys() & params.keys() - {"micro_batch"}
    return any(known[name] != str(params[name]) for name in both)


def metrics_of(values: Mapping[str, float | None], step: int, now: int) -> list[Metric]:
    """Return MLflow's metrics without those that are None; NaN and infinity are kept."""
    from mlflow.entities import Metric

    return [
        Metric(name, float(value), now, step) for name, value in values.items() if value is not None
    ]


def write(
    client: MlflowClient,
    run_id: str,
    metrics: Sequence[Metric] = (),
    *,
    params: Mapping[str, Any] = MappingProxyType({}),
    tags: Mapping[str, str],
) -> None:
    """Write metrics, parameters and tags of a run in one request."""
    from mlflow.entities import Param, RunTag

    texts = [Param(name, str(value)) for name, value in params.items()]
    client.log_batch(run_id, metrics, texts, [RunTag(*tag) for tag in tags.items()])


def now_ms() -> int:
    """Return the time as MLflow has it, in ms since 1970."""
    return time.time_ns() // 1_000_000
