"""The runs below a search's parent run. Everything here happens on the writer's thread.

A method may be called again with the same arguments, after a failure half-way or in a replay:
it then writes only what is missing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from resp_tune.common.choices import State
from resp_tune.common.fault_points import fault_point
from resp_tune.common.trial_key import TrialKey
from resp_tune.tracking.tags import (
    INTERRUPTED,
    KIND,
    MICRO_BATCH,
    NUMBER,
    RUNNING,
    STATE,
    STATUS,
    WEIGHTS,
    Kind,
    conditions,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, Run, RunTag


class RunKey(NamedTuple):
    """The identity of a run below its parent; new weights make a new evaluation of a trial."""

    kind: Kind
    trial: TrialKey
    weights: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.trial.label}"

    def tags(self) -> dict[str, str]:
        """The tags that the run is found by."""
        tags = {KIND: self.kind, NUMBER: str(self.trial.number)}
        if self.trial.replicate:
            tags[REPLICATE] = str(self.trial.replicate)
        return tags | {WEIGHTS: self.weights} if self.weights else tags


REPLICATE = "resp_tune.replicate"
_MOST_IN_A_BATCH = 1000  # the store's own limit of metrics
_LONGEST_ERROR = 2000  # characters; a tag holds 8000


@dataclass
class _Child:
    run_id: str
    status: str
    tags: dict[str, str]
    described: bool  # its parameters are written
    steps: set[int] | None  # those logged; None: not asked yet
    params: Mapping[str, str] = field(default_factory=dict)  # as an earlier driver wrote them

    @property
    def end(self) -> str | None:
        """The state it ended in; None while it runs, or where it was only interrupted."""
        state = self.tags.get(STATE)
        return state if state in STATUS and self.status != "RUNNING" else None


class TrialRuns:
    """The child runs of one search, by kind and number."""

    def __init__(
        self,
        client: MlflowClient,
        experiment: str,
        metric: str,
        common: Mapping[str, str],
        found: Iterable[Run],
    ) -> None:
        self._client, self._experiment, self._metric = client, experiment, metric
        self._common = dict(common)
        self._uncertain: set[RunKey] = set()
        self._children: dict[RunKey, _Child] = {}
        for run in found:
            key = _key_of(run)
            # The oldest stands, should somebody have copied a run.
            if key is not None and key not in self._children:
                self._children[key] = _as_child(run)

    def ids(self) -> dict[TrialKey, str]:
        """Return the run ids of trials and replicates."""
        items = list(self._children.items())
        return {key.trial: child.run_id for key, child in items if key.kind == key.trial.kind}

    def ended(self) -> int:
        """How many trials have ended."""
        items = list(self._children.items())
        return sum(key.kind == "trial" and child.end is not None for key, child in items)

    def start(
        self,
        key: RunKey,
        params: Mapping[str, Any],
        tags: Mapping[str, str],
        now: int,
        *,
        again: bool = False,
    ) -> _Child:
        """Find or create the run, running and with its parameters.

        An ended one stays ended, unless it runs `again`. One of other parameters goes: another
        driver gave the number to a trial that the study, where this one goes on from it, has not.
        """
        child = self._children.get(key)
        if child is not None and _contradict(child.params, params):
            self._client.delete_run(child.run_id)
            del self._children[key]
            child = None
        child = child or self._create(key, tags, now)
        if child.end is not None and not again:
            return child
        if child.status != "RUNNING":
            self._client.update_run(child.run_id, status="RUNNING")
            child.status = "RUNNING"
        if not child.described or child.tags.get(STATE) != RUNNING:
            self._client.log_batch(
                child.run_id,
                params=params_of(params),
                tags=tags_of({**tags, STATE: RUNNING}),
            )
            child.tags[STATE], child.described = RUNNING, True
        return child

    def _create(self, key: RunKey, tags: Mapping[str, str], now: int) -> _Child:
        mine = {**self._common, **key.tags()}
        if key in self._uncertain:
            # The last attempt failed on our side of the wire; it may have succeeded on the other.
            runs = self._client.search_runs([self._experiment], conditions(mine))
            if runs:
                self._children[key] = _as_child(runs[0])
                return self._children[key]
        self._uncertain.add(key)
        run = self._client.create_run(
            self._experiment,
            start_time=now,
            tags={**tags, **mine, STATE: RUNNING},
            run_name=str(key).replace(" ", "-").replace("/", "-"),
        )
        self._uncertain.discard(key)
        self._children[key] = _Child(
            run.info.run_id, "RUNNING", dict(run.data.tags), described=False, steps=set()
        )
        fault_point("mlflow-trial-created")
        return self._children[key]

    def log(self, key: RunKey, epochs: Sequence[tuple[Mapping[str, float], int]]) -> None:
        """One batch with all metrics of the epochs that are not logged yet, each with its time."""
        child = self._running(key)
        if child is None or not epochs:
            return
        if child.steps is None:
            name = next(name for name in epochs[0][0] if name != "epoch")
            history = self._client.get_metric_history(child.run_id, name)
            child.steps = {metric.step for metric in history}
        new = {int(row["epoch"]): (row, when) for row, when in epochs}
        new = {step: told for step, told in new.items() if step not in child.steps}
        metrics = [
            metric
            for step, (row, when) in new.items()
            for metric in metrics_of(self._ordered(row), step, when)
        ]
        for start in range(0, len(metrics), _MOST_IN_A_BATCH):
            self._client.log_batch(child.run_id, metrics[start : start + _MOST_IN_A_BATCH])
        child.steps |= new.keys()

    def _ordered(self, epoch: Mapping[str, float]) -> dict[str, float]:
        # MLflow's page for comparing runs opens on the metric that was logged first.
        first = f"val_{self._metric}"
        names = sorted((name for name in epoch if name != "epoch"), key=lambda name: name != first)
        return {name: epoch[name] for name in names}

    def _running(self, key: RunKey) -> _Child | None:
        child = self._children.get(key)
        if child is None:
            raise LookupError(f"{key} was never started")
        return None if child.end is not None else child

    def end(
        self,
        key: RunKey,
        state: State,
        metrics: Mapping[str, float | None],
        error: str | None,
        now: int,
        micro_batch: int | None = None,
    ) -> None:
        """End the run truly; one that ended in this state already is left alone."""
        child = self._children.get(key)
        if child is None:
            raise LookupError(f"{key} was never started")
        if child.end == state:
            return
        tags: dict[str, str] = {STATE: state}
        if error:
            tags["resp_tune.error"] = error[:_LONGEST_ERROR]
        if micro_batch is not None:  # a tag, since a parameter cannot change
            tags[MICRO_BATCH] = str(micro_batch)
        step = max(child.steps or {0})
        self._client.log_batch(
            child.run_id, metrics=metrics_of(metrics, step, now), tags=tags_of(tags)
        )
        self._client.set_terminated(child.run_id, status=STATUS[state], end_time=now)
        child.tags.update(tags)
        child.status = STATUS[state]
        fault_point("mlflow-trial-ended")

    def interrupt(self, now: int) -> None:
        """End what still runs as KILLED and `interrupted`; `start` takes it up again."""
        for child in list(self._children.values()):
            if child.status == "RUNNING":
                self._client.set_tag(child.run_id, STATE, INTERRUPTED)
                self._client.set_terminated(child.run_id, status="KILLED", end_time=now)
                child.tags[STATE], child.status = INTERRUPTED, "KILLED"

    def evaluation(
        self,
        key: RunKey,
        params: Mapping[str, Any],
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
        now: int,
    ) -> str:
        """The finished run of a reading of the test side, made once for the same weights."""
        child = self.start(key, params, tags, now)
        self.end(key, "finished", metrics, None, now)
        fault_point("mlflow-evaluation")
        return child.run_id


def _key_of(run: Run) -> RunKey | None:
    tags = run.data.tags
    kind = next((kind for kind in get_args(Kind) if kind == tags.get(KIND)), None)
    number, replicate = tags.get(NUMBER, ""), tags.get(REPLICATE, "0")
    if kind is None or not number.isdecimal() or not replicate.isdecimal():
        return None
    weights = tags.get(WEIGHTS, "") if kind == "evaluation" else ""
    return RunKey(kind, TrialKey(int(number), int(replicate)), weights)


def _as_child(run: Run) -> _Child:
    return _Child(
        run.info.run_id,
        run.info.status,
        dict(run.data.tags),
        bool(run.data.params),
        steps=None,
        params=run.data.params,
    )


def _contradict(known: Mapping[str, str], given: Mapping[str, Any]) -> bool:
    """Whether a parameter differs; the micro-batch may, where memory did not suffice."""
    both = known.keys() & given.keys() - {"micro_batch"}
    return any(known[name] != str(given[name]) for name in both)


def metrics_of(values: Mapping[str, float | None], step: int, now: int) -> list[Metric]:
    """MLflow's metrics; None is left out, a value that is not finite is written as such."""
    from mlflow.entities import Metric

    return [
        Metric(name, float(value), now, step) for name, value in values.items() if value is not None
    ]


def params_of(values: Mapping[str, Any]) -> list[Param]:
    """MLflow's parameters: text."""
    from mlflow.entities import Param

    return [Param(name, str(value)) for name, value in values.items()]


def tags_of(values: Mapping[str, str]) -> list[RunTag]:
    """MLflow's tags."""
    from mlflow.entities import RunTag

    return [RunTag(name, value) for name, value in values.items()]
