"""Decide when a search has tried enough: the rules of `--stop`.

A rule sees the trials that have ended, and ends the search by no longer asking for new ones.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from resp_tune.common.choices import METRIC_MODES
from resp_tune.data.split_spec import INNER_FOLDS
from resp_tune.errors import UserError
from resp_tune.study.optuna_internals import regret_bound
from resp_tune.study.study import TrialRecord, best_of

if TYPE_CHECKING:
    import optuna

    from resp_tune.study.schedulers import Steps

FORMS = "plateau:N, target:X or regret"
MIN_TRIALS = 20  # with a score, before the regret is bounded: a model of fewer says nothing


@dataclass(frozen=True)
class Progress:
    """What a rule may look at. `trials`: those that have ended, by number."""

    trials: Sequence[TrialRecord]
    study: optuna.Study
    metric: str
    steps: Steps

    @property
    def best(self) -> TrialRecord | None:
        """Return the first of the finished trials with the best score."""
        return best_of(self.trials, self.metric)


class StopRule(Protocol):
    """A rule that ends a search."""

    def reason(self, progress: Progress) -> str | None:
        """Return why the search should end, or None."""


@dataclass(frozen=True)
class Plateau:
    """End the search when the last `count` trials were no better than one before them."""

    count: int

    def reason(self, progress: Progress) -> str | None:
        """Compare by number; failed trials do not count."""
        counted = [t.number for t in progress.trials if t.state != "failed"]
        best = progress.best
        if best is None or len(counted) - 1 - counted.index(best.number) < self.count:
            return None
        return f"no trial of the last {self.count} is better than trial {best.number}"


@dataclass(frozen=True)
class Target:
    """End the search when a trial has reached `score`."""

    score: float

    def reason(self, progress: Progress) -> str | None:
        """Compare the best score, in the direction of the metric."""
        best = progress.best
        if best is None or best.score is None:
            return None
        sign = 1 if METRIC_MODES[progress.metric] == "max" else -1
        reached = sign * best.score >= sign * self.score
        return f"trial {best.number} has reached {best.score:.4g}" if reached else None


@dataclass(frozen=True)
class Regret:
    """End the search when what better parameters could gain is less than the noise of the folds.

    The gain is bounded by a Gaussian process of the scores, as Optuna's `RegretBoundEvaluator`
    does. The noise is the standard error of the best trial's mean over its folds, for folds that
    share patients of training (Makarova et al., Automatic Termination for Hyperparameter
    Optimization, AutoML 2022, with the correction of Nadeau and Bengio, 2003).
    """

    def reason(self, progress: Progress) -> str | None:
        """Compare the bound of the regret with the noise."""
        best = progress.best
        if best is None:
            return None
        scores = progress.steps.fold_scores(best.epochs, progress.metric)
        gain = regret_bound(progress.study, MIN_TRIALS)
        if gain is None or len(scores) < progress.steps.folds:
            return None
        noise = standard_error(scores)
        if gain >= noise:
            return None
        return f"a gain of {gain:.3g} at most is possible, less than the noise of {noise:.3g}"


def standard_error(scores: Sequence[float]) -> float:
    """Return the standard error of the mean over folds, each a part in `INNER_FOLDS` of the data.

    `sqrt((1/K + n_validation / n_training) · variance)`, Nadeau and Bengio (2003).
    """
    variance = statistics.variance(scores)
    return math.sqrt((1 / len(scores) + 1 / (INNER_FOLDS - 1)) * variance)


def parse_stop_rule(text: str) -> StopRule:
    """Return the rule of `--stop TEXT`; raise `UserError` if there is none."""
    name, _, value = text.partition(":")
    if text == "regret":
        return Regret()
    if name == "plateau" and re.fullmatch(r"[1-9]\d{0,8}", value, re.ASCII):
        return Plateau(int(value))
    if name == "target":
        try:
            score = float(value)
        except ValueError:
            score = math.nan
        if math.isfinite(score):
            return Target(score)
    raise UserError(f"--stop '{text[:80]}' is not a rule: give {FORMS}")
