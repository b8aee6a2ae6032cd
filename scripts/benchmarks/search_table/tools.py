"""What proposes and stops trials in a replay: resp_tune's own parts, or those of others."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import optuna
from optuna.trial import TrialState

from benchmarks.search_table.sampling import Grid, TableSampler
from benchmarks.search_table.settings import OPTUNA, RAY, Setting
from resp_tune.common import choices
from resp_tune.common.choices import State
from resp_tune.common.trial_key import TrialKey
from resp_tune.config import TrialConfig
from resp_tune.space.search_space import SearchSpace
from resp_tune.study.samplers import make_sampler
from resp_tune.study.schedulers import Steps, decision_steps, make_schedulers
from resp_tune.study.study import Rows, TrialRecord
from resp_tune.training.metrics import METRICS

STUDY = "replay"  # Optuna's Hyperband draws a trial's bracket from the name
CONFIG = TrialConfig()  # of a record, which no rule reads


class Tool(ABC):
    """A searcher with its rules, on a table of trials. `steps`: of a whole trial."""

    def __init__(self, metric: str, steps: Steps, sampler: TableSampler) -> None:
        self.metric, self.steps, self.sampler = metric, steps, sampler
        self.mode = METRICS[metric].mode

    @property
    def decisions(self) -> tuple[int, ...]:
        """Return the steps after which it wants to hear of a trial, without the last one."""
        return tuple(range(1, self.steps.total))

    @abstractmethod
    def ask(self) -> Any:
        """Start a trial at the point `sampler.last` and return a handle of it."""

    @abstractmethod
    def stops(self, trial: Any, rows: Rows) -> bool:
        """Return whether a trial with these epochs must stop."""

    @abstractmethod
    def end(self, trial: Any, state: State, rows: Rows) -> None:
        """Take note of the end of a trial."""


class OwnTool(Tool):
    """resp_tune's sampler, scheduler and rule between folds, as `SamplerSource` uses them.

    A scheduler that resp_tune does not have is Optuna's pruner of that name.
    """

    def __init__(self, metric: str, steps: Steps, sampler: TableSampler, setting: Setting) -> None:
        super().__init__(metric, steps, sampler)
        own = setting.scheduler if setting.scheduler in choices.SCHEDULERS else "none"
        rule = "none" if setting.fold_rule == "together" else setting.fold_rule
        self.pruner = None if own == setting.scheduler else _pruner(setting.scheduler, steps)
        self.study = optuna.create_study(
            direction="maximize" if self.mode == "max" else "minimize",
            sampler=sampler,
            pruner=self.pruner,
            study_name=STUDY,
        )
        sampler.study = self.study
        self.rules = make_schedulers(own, rule, metric, steps, ())
        self._decisions = decision_steps(own, steps)

    @property
    def decisions(self) -> tuple[int, ...]:
        """Return the steps at which a rule decides; a pruner does at every step."""
        return super().decisions if self.pruner else self._decisions

    def ask(self) -> optuna.Trial:
        """Start a trial."""
        trial = self.study.ask()
        self.sampler.space.suggest_values(trial)
        return trial

    def stops(self, trial: optuna.Trial, rows: Rows) -> bool:
        """Report a trial's last epoch and return whether it must stop."""
        trial.report(rows[-1][f"val_{self.metric}"], len(rows))
        if self.pruner is not None and trial.should_prune():
            return True
        key = TrialKey(trial.number)
        reasons = [rule.stop_reason(key, rows) for rule in self.rules]  # each enters the trial
        return any(reasons)

    def end(self, trial: optuna.Trial, state: State, rows: Rows) -> None:
        """Take note of the end of a trial."""
        score = rows[-1][f"val_{self.metric}"] if rows else math.nan
        if state == "finished":
            trial.report(score, len(rows))
            self.study.tell(trial, score)
        elif state == "diverged":
            trial.set_user_attr("diverged", True)
            self.study.tell(trial, METRICS[self.metric].worst)
        else:
            self.study.tell(trial, state=TrialState.PRUNED)
        final = score if state == "finished" else None
        key = TrialKey(trial.number)
        record = TrialRecord(key, state, final, CONFIG, {}, list(map(dict, rows)), 0.0, None)
        for rule in self.rules:
            rule.add(record)


class OptunaTool(Tool):
    """`optuna.create_study` with its defaults: TPE of independent parameters, median pruner."""

    def __init__(self, metric: str, steps: Steps, sampler: TableSampler) -> None:
        super().__init__(metric, steps, sampler)
        direction = "maximize" if self.mode == "max" else "minimize"
        self.study = optuna.create_study(
            direction=direction, sampler=sampler, pruner=optuna.pruners.MedianPruner()
        )

    def ask(self) -> optuna.Trial:
        """Start a trial."""
        trial = self.study.ask()
        self.sampler.space.suggest_values(trial)
        return trial

    def stops(self, trial: optuna.Trial, rows: Rows) -> bool:
        """Report a trial's last epoch and return whether it must stop."""
        trial.report(rows[-1][f"val_{self.metric}"], len(rows))
        return trial.should_prune()

    def end(self, trial: optuna.Trial, state: State, rows: Rows) -> None:
        """Take note of the end of a trial."""
        if state == "finished":
            self.study.tell(trial, rows[-1][f"val_{self.metric}"])
        else:
            self.study.tell(
                trial, state=TrialState.FAIL if state == "diverged" else TrialState.PRUNED
            )


class RayTool(Tool):
    """Ray Tune's `OptunaSearch` and `ASHAScheduler` with their defaults, driven as Tune does."""

    def __init__(self, metric: str, steps: Steps, sampler: TableSampler) -> None:
        super().__init__(metric, steps, sampler)
        from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler
        from ray.tune.search.optuna import OptunaSearch

        def define(trial: Any) -> None:
            sampler.space.suggest_values(trial)

        self.search = OptunaSearch(define, metric="score", mode=self.mode, sampler=sampler)
        self.asha = AsyncHyperBandScheduler(
            metric="score", mode=self.mode, max_t=steps.total, time_attr="training_iteration"
        )
        self.stop, self.count = TrialScheduler.STOP, 0

    def ask(self) -> Any:
        """Start a trial."""
        trial = SimpleNamespace(trial_id=str(self.count))
        self.count += 1
        self.search.suggest(trial.trial_id)
        self.asha.on_trial_add(None, trial)  # type: ignore[arg-type]  # it looks at the id alone
        return trial

    def _result(self, rows: Rows) -> dict[str, Any]:
        return {"score": rows[-1][f"val_{self.metric}"], "training_iteration": len(rows)}

    def stops(self, trial: Any, rows: Rows) -> bool:
        """Report a trial's last epoch and return whether it must stop."""
        result = self._result(rows)
        decision = self.asha.on_trial_result(None, trial, result)  # type: ignore[arg-type]
        self.search.on_trial_result(trial.trial_id, result)
        return bool(decision == self.stop)

    def end(self, trial: Any, state: State, rows: Rows) -> None:
        """Take note of the end of a trial."""
        if state == "diverged":
            self.search.on_trial_complete(trial.trial_id, error=True)
            return
        result = self._result(rows)
        self.asha.on_trial_complete(None, trial, result)  # type: ignore[arg-type]
        self.search.on_trial_complete(trial.trial_id, result)


def make_tool(
    setting: Setting, metric: str, steps: Steps, seed: int, parts: tuple[SearchSpace, Grid]
) -> Tool:
    """Return the tool of a setting; resp_tune tries the baseline, point 0, first."""
    space, grid = parts
    if setting.tool == OPTUNA:
        sampler: Any = optuna.samplers.TPESampler(seed=seed)
        return OptunaTool(metric, steps, TableSampler(sampler, space, grid))
    if setting.tool == RAY:
        sampler = optuna.samplers.TPESampler(seed=seed)  # OptunaSearch's own
        return RayTool(metric, steps, TableSampler(sampler, space, grid))
    first = 0 if setting.tool == "resp_tune" else None
    own = TableSampler(make_sampler(setting.sampler, seed), space, grid, first)
    return OwnTool(metric, steps, own, setting)


def _pruner(name: str, steps: Steps) -> optuna.pruners.BasePruner:
    if name == "median":
        return optuna.pruners.MedianPruner()
    return optuna.pruners.HyperbandPruner(min_resource=1, max_resource=steps.total)


def quiet(names: Sequence[str] = ("ray.tune",)) -> None:
    """Silence what Optuna and Ray say of each trial."""
    import logging
    import warnings

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
