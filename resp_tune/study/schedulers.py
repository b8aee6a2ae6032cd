"""Decide at rungs which trials stop early, from the epochs that the study has of each trial.

A step is an epoch of a trial, counted over all its folds if these are trained one after the other.
Nothing is kept elsewhere: after a restart the trials of the study put every rule into the state
that it had before.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from resp_tune.common.trial_key import TrialKey
from resp_tune.study.study import Rows, TrialRecord, best_of
from resp_tune.training.metrics import METRICS

REDUCTION = 3
# OneCycle's learning rate is still near its peak before a third of the schedule: what a trial
# scores there says little about its end.
GRACE = 0.35


@dataclass(frozen=True)
class Steps:
    """The steps of a trial: `epochs` for each of the `folds` that are trained in sequence.

    Folds that are trained together count as one.
    """

    epochs: int
    folds: int = 1

    @property
    def total(self) -> int:
        """Return the steps of a whole trial."""
        return self.epochs * self.folds

    @property
    def fold_ends(self) -> tuple[int, ...]:
        """Return the last step of each fold but the last one."""
        return tuple(self.epochs * fold for fold in range(1, self.folds))

    def fold_scores(self, rows: Rows, metric: str) -> list[float]:
        """Return the final score of each fold that has ended, from a trial's epochs.

        The metrics of an epoch are means over the folds until then.
        """
        return self.own_scores(rows, metric)[self.epochs - 1 :: self.epochs]

    def own_scores(self, rows: Rows, metric: str) -> list[float]:
        """Return the score of each step on its own fold; NaN where an epoch has none."""
        scores, earlier = [], 0.0  # the sum over the folds before
        for step, row in enumerate(rows):
            fold, epoch = divmod(step, self.epochs)
            total = row.get(f"val_{metric}", math.nan) * (fold + 1)
            scores.append(total - earlier)
            if epoch == self.epochs - 1:
                earlier = total
        return scores


def rungs(scheduler: str, steps: Steps) -> tuple[int, ...]:
    """Return the steps after which `scheduler` compares trials, ascending; empty for `none`."""
    if scheduler == "none":
        return ()
    epoch, deciding = grace_period(steps.epochs), []
    while epoch < steps.epochs:
        deciding.append(epoch)
        epoch *= REDUCTION
    return tuple(fold * steps.epochs + epoch for fold in range(steps.folds) for epoch in deciding)


def decision_steps(scheduler: str, steps: Steps) -> tuple[int, ...]:
    """Return the steps after which `scheduler`, or a rule between folds, needs a report."""
    return tuple(sorted({*rungs(scheduler, steps), *steps.fold_ends}))


def grace_period(epochs: int) -> int:
    """Return the number of epochs that every trial gets."""
    return max(1, math.ceil(GRACE * epochs))


class Scheduler(ABC):
    """A rule that stops trials early. `past`: the trials that the study has already."""

    def __init__(self, metric: str, steps: Steps, past: Sequence[TrialRecord] = ()) -> None:
        self.metric, self.steps = metric, steps
        self.sign = 1.0 if METRICS[metric].mode == "max" else -1.0
        for run in past:
            self.add(run)

    @abstractmethod
    def add(self, run: TrialRecord) -> None:
        """Take a trial of an earlier run into account, or one that has just ended."""

    @abstractmethod
    def stop_reason(self, key: TrialKey, rows: Rows) -> str | None:
        """Return why a trial with the epochs `rows` must stop, or None."""


class Asha(Scheduler):
    """Stop a trial that is not in the best third of those that have come to a rung before it.

    Asynchronous successive halving (Li et al., MLSys 2020) with one bracket, which decides as Ray
    Tune's does. A trial is compared by the best value of its current fold until the rung.
    """

    def __init__(
        self, metric: str, steps: Steps, past: Sequence[TrialRecord] = (), name: str = "asha"
    ) -> None:
        self.rungs: dict[int, dict[TrialKey, float]] = {s: {} for s in rungs(name, steps)}
        super().__init__(metric, steps, past)

    def add(self, run: TrialRecord) -> None:
        """Enter the trial on the rungs that it has reached."""
        for step, scores in self.rungs.items():
            if (best := self._best(run.epochs[:step])) is not None and len(run.epochs) >= step:
                scores.setdefault(run.key, best)

    def stop_reason(self, key: TrialKey, rows: Rows) -> str | None:
        """Compare a trial at the highest rung that it has reached and was not compared at."""
        for step in sorted(self.rungs, reverse=True):
            scores = self.rungs[step]
            if len(rows) < step or key in scores:
                continue
            if (best := self._best(rows)) is None:
                return None
            others = list(scores.values())
            scores[key] = best
            stops = others and best < np.percentile(others, (1 - 1 / REDUCTION) * 100)
            return "scheduler" if stops else None
        return None

    def _best(self, rows: Rows) -> float | None:
        """Return the best value of the current fold, larger is better; None if one is missing."""
        start = (len(rows) - 1) // self.steps.epochs * self.steps.epochs
        values = [row.get(f"val_{self.metric}", math.nan) for row in rows[max(start, 0) :]]
        if not values or not all(map(math.isfinite, values)):
            return None
        return max(self.sign * value for value in values)


class FoldRule(Scheduler):
    """Compare a trial that has just ended a fold with the incumbent.

    The incumbent is the best trial that has finished all folds.
    """

    def __init__(self, metric: str, steps: Steps, past: Sequence[TrialRecord] = ()) -> None:
        self.incumbent: TrialRecord | None = None
        super().__init__(metric, steps, past)

    def add(self, run: TrialRecord) -> None:
        """Let the trial replace the incumbent if it has finished with a better score."""
        self.incumbent = best_of([t for t in (self.incumbent, run) if t], self.metric)

    def stop_reason(self, key: TrialKey, rows: Rows) -> str | None:
        """Compare a trial that has just ended a fold."""
        if self.incumbent is None or len(rows) not in self.steps.fold_ends:
            return None
        stops = self._is_worse(rows, self.incumbent.epochs)
        return f"fold {len(rows) // self.steps.epochs}" if stops else None

    @abstractmethod
    def _is_worse(self, rows: Rows, incumbent: Rows) -> bool:
        """Return whether a trial with the epochs `rows` must stop."""

    def _mean(self, rows: Rows) -> float:
        """Return the mean over the folds until the last of `rows`, larger is better."""
        return self.sign * rows[-1].get(f"val_{self.metric}", math.nan)


class Forgiving(FoldRule):
    """Stop a trial between folds if its mean is worse than the incumbent's worst fold.

    This is the "forgiving" rule of early-stopped cross-validation (Bergman et al., 2024).
    """

    def _is_worse(self, rows: Rows, incumbent: Rows) -> bool:
        scores = self.steps.fold_scores(incumbent, self.metric)
        return self._mean(rows) < min(self.sign * score for score in scores)


class Wilcoxon(FoldRule):
    """Stop a trial between folds if a signed-rank test says that it is worse than the incumbent.

    The test (Wilcoxon, Biometrics 1945), its threshold and the safety that a trial with the better
    mean continues are those of Optuna's `WilcoxonPruner`. A pair is an epoch of a fold that both
    trials have had, with the score of each on that fold; epochs before the grace period, of which
    `GRACE` says why they mean little, are left out. Fold scores alone are at most three pairs,
    which cannot be significant, and patients are not stored by epoch. Neighbouring epochs are
    not independent, so the threshold is how eagerly the rule stops, not its share of false stops.
    """

    THRESHOLD = 0.1

    def _is_worse(self, rows: Rows, incumbent: Rows) -> bool:
        own, best = (np.array(self._scores(each)) for each in (rows, incumbent[: len(rows)]))
        late = np.arange(len(rows)) % self.steps.epochs + 1 >= grace_period(self.steps.epochs)
        differences = (own - best)[late]
        differences = differences[np.isfinite(differences)]
        if not differences.any() or self._mean(rows) >= self._mean(incumbent[: len(rows)]):
            return False
        from scipy.stats import wilcoxon  # slow to import

        # Half of the zeros count for either side, as in Optuna: tied epochs are no evidence.
        test = wilcoxon(differences, alternative="less", zero_method="zsplit")
        return bool(test.pvalue < self.THRESHOLD)

    def _scores(self, rows: Rows) -> list[float]:
        return [self.sign * score for score in self.steps.own_scores(rows, self.metric)]


FOLD_RULES: Mapping[str, type[Scheduler] | None] = {
    "forgiving": Forgiving,
    "wilcoxon": Wilcoxon,
    "none": None,
}


def make_schedulers(
    scheduler: str, fold_rule: str, metric: str, steps: Steps, past: Sequence[TrialRecord]
) -> list[Scheduler]:
    """Return the rules by their names: `scheduler` within folds, `fold_rule` between them."""
    made: list[Scheduler] = [] if scheduler == "none" else [Asha(metric, steps, past, scheduler)]
    rule = FOLD_RULES[fold_rule] if steps.folds > 1 else None
    return made if rule is None else [*made, rule(metric, steps, past)]
