"""What happens to trials, written to the study first and then told to whoever listens."""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import optuna
from optuna.trial import TrialState

from resp_tune.common.choices import State
from resp_tune.common.fault_points import fault_point
from resp_tune.common.trial_key import TrialKey
from resp_tune.config import TrialConfig
from resp_tune.space.search_space import SearchSpace
from resp_tune.study.study import TrialRecord, one_commit, record, trial_seed, with_micro_batch
from resp_tune.training.metrics import METRICS

HOPELESS = 3


class Listener(Protocol):
    """Something that follows a search: the tracker, the table on the terminal."""

    def started(self, trial: TrialRecord, seed: int) -> None:
        """A trial was handed out, for the first time or again."""

    def advanced(self, trial: TrialRecord, epochs: Sequence[Mapping[str, float]]) -> None:
        """A trial has reported new epochs."""

    def ended(self, trial: TrialRecord) -> None:
        """A trial has reached its final state."""


class TrialQueue:
    """Hands out trials of a study and writes down what becomes of them.

    Trials that an earlier driver left running come first, with the same number and parameters; then
    the study's sampler is asked until there are `budget` trials or `deadline` (of `time.monotonic`)
    has passed.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: SearchSpace,
        *,
        metric: str,
        epochs: int,
        seed: int,
        budget: int | None,
        deadline: float | None,
        listeners: Sequence[Listener],
        settle: Callable[[TrialConfig], TrialConfig] = lambda config: config,
    ) -> None:
        self.study, self.space = study, space
        self.metric, self.epochs, self.seed = metric, epochs, seed
        self.budget, self.deadline = budget, deadline
        self.listeners, self.settle = listeners, settle
        trials = study.get_trials(deepcopy=False)
        self._left_running = [t._trial_id for t in trials if t.state == TrialState.RUNNING]
        self._handed_out = sum(t.state != TrialState.WAITING for t in trials)
        self._ended: set[State] = set()
        self._failures = 0
        self._trials: dict[TrialKey, optuna.trial.Trial] = {}
        self._records: dict[TrialKey, TrialRecord] = {}  # of those that run now
        self._clock: dict[TrialKey, float] = {}
        if not trials:
            study.enqueue_trial(space.baseline_params())

    def out_of_time(self) -> bool:
        """True once the deadline has passed."""
        return self.deadline is not None and time.monotonic() > self.deadline

    def stopped(self, key: TrialKey) -> str | None:
        """Why a running trial must not go on; None where it may."""
        return "time budget" if self.out_of_time() else None

    def config(self, key: TrialKey) -> TrialConfig:
        """What a running trial goes on with."""
        return self._records[key].config

    def next_trial(self) -> dict[str, Any] | None:
        """What a worker needs to run the next trial, None when the budget is met."""
        if not self._left_running and (
            self._hopeless() or self.out_of_time() or self._budget_met()
        ):
            return None
        with one_commit(self.study):
            if self._left_running:
                trial = optuna.trial.Trial(self.study, self._left_running.pop(0))
            else:
                trial = self.study.ask()
                self._handed_out += 1
            config = self._settled(trial)
            trial.set_user_attr("seed", config.seed)
            trial.set_user_attr("config", config.as_dict())
        found = self._read(trial)
        key = found.key
        self._trials[key], self._records[key] = trial, found
        self._clock[key] = time.monotonic() - found.seconds
        for listener in self.listeners:
            listener.started(found, config.seed)
        fault_point("trial-handed-out", str(key.folder))
        return {
            "key": key,
            "config": config,
            "epochs_reported": len(found.epochs),
            "attempt": uuid.uuid4().hex,
        }

    def _settled(self, trial: optuna.trial.Trial) -> TrialConfig:
        fault_point("trial-asked")
        seed = trial_seed(self.seed, trial.number)
        suggested = self.settle(self.space.suggest(trial))
        config = suggested.replace({"seed": seed, "epochs": self.epochs})
        # One that was cut off keeps what it began with: the precision of the machine it was on,
        # and a micro-batch that it had to halve.
        return config.replace(trial.user_attrs.get("config", {}))

    def _budget_met(self) -> bool:
        return self.budget is not None and self._handed_out >= self.budget

    def _hopeless(self) -> bool:
        """True when nothing but failures has come back: the next trial would fail as well."""
        return self._ended == {"failed"} and self._failures >= HOPELESS

    def advance(
        self, key: TrialKey, rows: Sequence[dict[str, float]], micro_batch: int | None = None
    ) -> None:
        """Epochs of a running trial; those that are known are skipped.

        A worker that takes over from a lost one tells again what the lost one had told.
        `micro_batch`: what the trial went on with when memory did not suffice.
        """
        fault_point("trial-advances", str(key.folder))
        known, trial = self._records[key], self._trials[key]
        if micro_batch not in (None, known.config.micro_batch):
            known = with_micro_batch(known, micro_batch)
            trial.set_user_attr("config", known.config.as_dict())
            self._records[key] = known
        rows = [row for row in rows if row["epoch"] > len(known.epochs)]
        if not rows:
            return
        # Kept here as well: to read it back from the study would take longer than to write it.
        told = dataclasses.replace(known, epochs=[*known.epochs, *rows], seconds=self._seconds(key))
        with one_commit(self.study):
            for row in rows:
                value = row.get(f"val_{self.metric}")
                if value is not None:
                    trial.report(value, int(row["epoch"]))
            trial.set_user_attr("epochs", told.epochs)
        self._records[key] = told
        for listener in self.listeners:
            listener.advanced(told, rows)

    def end(self, key: TrialKey, state: State, reason: str | None = None) -> None:
        """The end of a running trial; `reason` is the error, or what stopped it."""
        fault_point("trial-ends", str(key.folder))
        trial = self._trials[key]
        with one_commit(self.study):
            self._tell(trial, state, reason)
        self._ended.add(state)
        self._failures += state == "failed"
        ended = self._read(trial)
        del self._trials[key], self._records[key], self._clock[key]
        for listener in self.listeners:
            listener.ended(ended)
        fault_point("trial-ended", str(key.folder))

    def _tell(self, trial: optuna.trial.Trial, state: State, reason: str | None) -> None:
        trial.set_user_attr("seconds", self._seconds(TrialKey(trial.number)))
        if reason is not None:
            trial.set_user_attr("error" if state == "failed" else "stopped", reason)
        if state == "diverged":
            trial.set_user_attr("diverged", True)
            self.study.tell(trial, METRICS[self.metric].worst)
        elif state == "finished":
            self.study.tell(
                trial, self._records[TrialKey(trial.number)].epochs[-1][f"val_{self.metric}"]
            )
        else:
            end = TrialState.PRUNED if state == "pruned" else TrialState.FAIL
            self.study.tell(trial, state=end)

    def _seconds(self, key: TrialKey) -> float:
        return time.monotonic() - self._clock[key]

    def _read(self, trial: optuna.trial.Trial) -> TrialRecord:
        return record(self.study._storage.get_trial(trial._trial_id), self.space)
