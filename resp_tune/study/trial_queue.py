"""Hand out training runs, and record their progress in the study first and with listeners next."""

from __future__ import annotations

import dataclasses
import logging
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import TrialState

from resp_tune.common.choices import FoldOrder, State
from resp_tune.common.fault_points import fault_point
from resp_tune.common.trial_key import TrialKey
from resp_tune.config import Precision, TrialConfig
from resp_tune.space.search_space import SearchSpace
from resp_tune.study.optuna_internals import one_commit, reopen_trial, stored_trial
from resp_tune.study.samplers import SpaceSampler
from resp_tune.study.schedulers import Steps, make_schedulers
from resp_tune.study.stop_rules import Progress, parse_stop_rule
from resp_tune.study.study import (
    FOLDS_RUN,
    STOPPED_BY,
    Rows,
    TrialRecord,
    epochs_key,
    read_record,
    records,
    saved_config,
    stopped_by,
    trial_seed,
)
from resp_tune.training.metrics import METRICS

log = logging.getLogger(__name__)

MAX_INITIAL_FAILURES = 3


class Listener:
    """A follower of a search, such as the table on the terminal; by itself it does nothing."""

    def started(self, trial: TrialRecord) -> None:
        """Take note of a run that was handed out, for the first time or again."""

    def advanced(self, trial: TrialRecord, epochs: Rows) -> None:
        """Take note of new epochs of a run."""

    def ended(self, trial: TrialRecord) -> None:
        """Take note of the final state of a run."""


@dataclass(frozen=True)
class TrialSettings:
    """The settings that all runs of a search share. `precision`: the one that `auto` stands for.

    `epochs` are those of a fold.
    """

    metric: str
    epochs: int
    seed: int
    precision: Precision = "auto"
    folds: int = 1
    fold_order: FoldOrder = "sequence"

    @property
    def steps(self) -> Steps:
        """Return the steps of a run."""
        return Steps(self.epochs, self.folds if self.fold_order == "sequence" else 1)

    def folds_run(self, rows: Rows) -> int:
        """Return on how many folds a run with the epochs `rows` was trained, if not to the end."""
        started = -(-len(rows) // self.epochs)
        return started if self.fold_order == "sequence" else self.folds * started


class ProposalSource(ABC):
    """A source of runs for a `TrialQueue`, which also stores their progress in the study."""

    def __init__(self, study: optuna.Study, settings: TrialSettings) -> None:
        self.study, self.settings = study, settings

    @abstractmethod
    def propose(self, running: Collection[TrialKey]) -> TrialRecord | None:
        """Return the next run, stored as running, or None while there is none."""

    @abstractmethod
    def stop_reason(self, key: TrialKey, rows: Rows = ()) -> str | None:
        """Return why a running run with the epochs `rows` must stop, or None."""

    @abstractmethod
    def save(self, run: TrialRecord, rows: Rows = (), reason: str | None = None) -> None:
        """Store a run whose config, epochs or state have changed.

        `rows`: the new ones at the end of its epochs. `reason`: its error, or what stopped it.
        """

    def end_abandoned(self, running: Collection[TrialKey]) -> list[TrialRecord]:
        """End interrupted runs that will not be resumed, and return their records."""
        return []


class TrialQueue:
    """Drives the runs of a `ProposalSource`, for one driver.

    What a worker reports is stored in the study before any listener hears of it.
    """

    def __init__(self, source: ProposalSource, listeners: Sequence[Listener] = ()) -> None:
        self.source, self.listeners = source, listeners
        self._running: dict[TrialKey, TrialRecord] = {}
        self._started_at: dict[TrialKey, float] = {}  # of the monotonic clock, less earlier seconds

    @property
    def epochs(self) -> int:
        """The epochs of a whole run, on all its folds."""
        return self.source.settings.steps.total

    def config(self, key: TrialKey) -> TrialConfig:
        """Return the current config of a running run."""
        return self._running[key].config

    def next_trial(self) -> dict[str, Any] | None:
        """Return what a worker needs for the next run, or None while there is none."""
        run = self.source.propose(self._running.keys())
        if run is None:
            for abandoned in self.source.end_abandoned(self._running.keys()):
                self._report_end(abandoned)
            return None
        self._running[run.key] = run
        self._started_at[run.key] = time.monotonic() - run.seconds
        for listener in self.listeners:
            listener.started(run)
        fault_point("trial-handed-out", str(run.key.folder))
        return {"key": run.key, "config": run.config, "attempt": uuid.uuid4().hex}

    def advance(
        self, key: TrialKey, rows: Sequence[dict[str, float]], micro_batch: int | None = None
    ) -> None:
        """Record epochs of a running run, except those already known.

        A worker that takes over from a lost one reports from its checkpoint on, hence again what
        the lost one had reported. `micro_batch`: the one that it continues with after running out
        of memory.
        """
        fault_point("trial-advances", str(key.folder))
        run = self._running[key]
        rows = self._new(key, rows)
        if micro_batch not in (None, run.config.micro_batch):
            config = run.config.replace({"micro_batch": micro_batch})
            run = dataclasses.replace(run, config=config)
        elif not rows:
            return
        run = self._update(run, epochs=[*run.epochs, *rows])
        self.source.save(run, rows)
        self._running[key] = run
        if rows:
            for listener in self.listeners:
                listener.advanced(run, rows)

    def stop_reason(self, key: TrialKey, rows: Sequence[dict[str, float]]) -> str | None:
        """Return why a running run must stop after the new epochs `rows`, or None."""
        known = self._running[key].epochs
        return self.source.stop_reason(key, [*known, *self._new(key, rows)])

    def _new(self, key: TrialKey, rows: Sequence[dict[str, float]]) -> list[dict[str, float]]:
        """Return the epochs in `rows` that are not known yet."""
        known = len(self._running[key].epochs)
        return [row for row in rows if row["epoch"] > known]

    def end(self, key: TrialKey, state: State, reason: str | None = None) -> None:
        """Record the end of a running run. `reason`: its error, or what stopped it."""
        fault_point("trial-ends", str(key.folder))
        run, metric = self._running[key], self.source.settings.metric
        score = run.epochs[-1][f"val_{metric}"] if state == "finished" else None
        error = reason if state == "failed" else None
        run = self._update(run, state=state, score=score, error=error)
        self.source.save(run, reason=reason)
        del self._running[key], self._started_at[key]
        self._report_end(run)
        fault_point("trial-ended", str(key.folder))

    def _update(self, run: TrialRecord, **changes: Any) -> TrialRecord:
        seconds = time.monotonic() - self._started_at[run.key]
        return dataclasses.replace(run, seconds=seconds, **changes)

    def _report_end(self, run: TrialRecord) -> None:
        for listener in self.listeners:
            listener.ended(run)


@dataclass(frozen=True)
class Rules:
    """The names of the rules that stop trials and end a search early.

    `scheduler` stops trials within a fold, `fold_rule` between folds. The first rule of `stop` that
    holds ends the search, also for the next command that has it.
    """

    scheduler: str = "none"
    fold_rule: str = "none"
    stop: tuple[str, ...] = ()


class SamplerSource(ProposalSource):
    """Trials of the study, with parameters from its sampler.

    Trials that an earlier driver left running come first, with the same number and parameters;
    then the sampler suggests new ones until there are `budget` trials or `deadline`, a value of
    `time.monotonic`, has passed. `rules` stop trials and the search early.
    """

    def __init__(
        self,
        study: optuna.Study,
        space: SearchSpace,
        settings: TrialSettings,
        *,
        budget: int | None,
        deadline: float | None = None,
        rules: Rules = Rules(),  # frozen
    ) -> None:
        super().__init__(study, settings)
        self.space, self.budget, self.deadline = space, budget, deadline
        if not isinstance(study.sampler, SpaceSampler):
            study.sampler = SpaceSampler(study.sampler, space)
        trials = study.get_trials(deepcopy=False)
        self._interrupted = [t for t in trials if t.state == TrialState.RUNNING]
        self._handed_out = sum(t.state != TrialState.WAITING for t in trials)
        self._ends: list[State] = []
        self._trials: dict[TrialKey, optuna.trial.Trial] = {}  # the running ones
        past = records(study, space)
        self._schedulers = make_schedulers(
            rules.scheduler, rules.fold_rule, settings.metric, settings.steps, past
        )
        self._ended = {t.key: t for t in past if t.state is not None}
        self._stop = {text: parse_stop_rule(text) for text in rules.stop}
        self._judged = 0  # ended trials that the rules have seen
        if not trials:
            study.enqueue_trial(space.baseline_params())

    def stop_reason(self, key: TrialKey, rows: Rows = ()) -> str | None:
        """Return "time budget" once the deadline has passed, else what a scheduler decides."""
        if self._is_late():
            return "time budget"
        reasons = [scheduler.stop_reason(key, rows) for scheduler in self._schedulers]
        return next(filter(None, reasons), None)

    def _is_late(self) -> bool:
        return self.deadline is not None and time.monotonic() > self.deadline

    def propose(self, running: Collection[TrialKey]) -> TrialRecord | None:
        """Return the next trial, stored as running, or None once the budget is spent."""
        if not self._interrupted and self._is_over():
            return None
        earlier = self._interrupted.pop(0) if self._interrupted else None
        with one_commit(self.study):
            if earlier is None:
                trial, saved = self.study.ask(), dict[str, Any]()
                self._handed_out += 1
            else:
                trial, saved = reopen_trial(self.study, earlier), saved_config(earlier)
            fault_point("trial-asked")
            # An interrupted trial keeps the config it began with: the precision of the machine it
            # was on, and a micro-batch that it had to halve.
            config = self.space.base.replace(self._suggest(trial) | saved)
            trial.set_user_attr("seed", config.seed)
            trial.set_user_attr("config", config.as_dict() | {FOLDS_RUN: 0})
        if earlier is None:
            values = self.space.values(config)
            run = TrialRecord(TrialKey(trial.number), None, None, config, values, [], 0.0, None)
        else:
            run = read_record(earlier, self.space, config)
        self._trials[run.key] = trial
        return run

    def _suggest(self, trial: optuna.trial.Trial) -> dict[str, Any]:
        seed = trial_seed(self.settings.seed, trial.number)
        values = self.space.suggest_values(trial) | {"seed": seed, "epochs": self.settings.epochs}
        if values["precision"] == "auto":
            values["precision"] = self.settings.precision
        return values

    def _is_over(self) -> bool:
        """Return whether the budget or the time is spent, or all trials fail, as the next would."""
        spent = self.budget is not None and self._handed_out >= self.budget
        failing = set(self._ends) == {"failed"} and len(self._ends) >= MAX_INITIAL_FAILURES
        return spent or failing or self._is_late() or self._is_stopped()

    def _is_stopped(self) -> bool:
        """Return whether a rule of `--stop` has ended the search, now or in an earlier run."""
        if stopped_by(self.study, self._stop) is not None:
            return True
        if self._judged == len(self._ended):
            return False
        self._judged = len(self._ended)
        trials = [self._ended[key] for key in sorted(self._ended)]
        progress = Progress(trials, self.study, self.settings.metric, self.settings.steps)
        for text, rule in self._stop.items():
            if reason := rule.reason(progress):
                log.info(f"no more trials: {text} ({reason})")
                self.study.set_user_attr(STOPPED_BY, text)
                return True
        return False

    def save(self, run: TrialRecord, rows: Rows = (), reason: str | None = None) -> None:
        """Store a trial whose config, epochs or state have changed; tell the sampler its scores."""
        trial = self._trials[run.key]
        config = run.config.as_dict() | {FOLDS_RUN: self.settings.folds_run(run.epochs)}
        with one_commit(self.study):
            if stored_trial(trial).user_attrs["config"] != config:
                trial.set_user_attr("config", config)
            for row in rows:
                if (score := row.get(f"val_{self.settings.metric}")) is not None:
                    trial.report(score, int(row["epoch"]))
            if rows:
                trial.set_user_attr(epochs_key(rows), rows)
            if run.state is not None:
                self._end(trial, run, reason)
        if run.state is not None:
            self._ends.append(run.state)
            del self._trials[run.key]
            self._ended[run.key] = run
            for scheduler in self._schedulers:
                scheduler.add(run)

    def _end(self, trial: optuna.trial.Trial, run: TrialRecord, reason: str | None) -> None:
        trial.set_user_attr("seconds", run.seconds)
        if reason is not None:
            trial.set_user_attr("error" if run.state == "failed" else "stopped", reason)
        if run.state == "diverged":
            trial.set_user_attr("diverged", True)
            self.study.tell(trial, METRICS[self.settings.metric].worst)
        elif run.state == "finished":
            self.study.tell(trial, run.score)
        else:
            end = TrialState.PRUNED if run.state == "pruned" else TrialState.FAIL
            self.study.tell(trial, state=end)
