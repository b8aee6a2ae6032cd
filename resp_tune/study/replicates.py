"""The best few trials run again on fresh seeds, so that the winner is not the luckiest.

The score that made a trial a candidate is not counted: it was picked for being high. Replicates are
no trials of the study, which holds what the sampler asked for; each is an attribute of the study,
`resp_tune.replicate.<number>.<index>`.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna

from resp_tune.common.trial_key import TrialKey
from resp_tune.errors import UserError
from resp_tune.study.study import TrialRecord, ranked
from resp_tune.training.metrics import METRICS
from resp_tune.training.seeds import mix_seed

CANDIDATES = 4
LEAST = 2  # seeds that a mean and its standard error need
# Two values are close together by chance too often: on two seeds, one in thirteen candidates that
# are better by half a deviation would be given up.
LEAST_TO_DROP = 3
_PREFIX = "resp_tune.replicate."


@dataclass(frozen=True)
class Candidate:
    """A trial of the search and the replicates of it that count, by index.

    A replicate that has diverged counts with the metric's worst value, but has no network to use.
    `failure`: why one of its replicates failed, which takes it out until that is run again.
    """

    trial: TrialRecord
    runs: tuple[TrialRecord, ...]
    metric: str
    failure: str | None

    @property
    def scores(self) -> list[float]:
        """One a replicate."""
        worst = METRICS[self.metric].worst
        return [worst if r.score is None else r.score for r in self.runs]

    @property
    def finished(self) -> list[TrialRecord]:
        """Replicates whose networks can be used."""
        return [r for r in self.runs if r.state == "finished"]

    @property
    def mean(self) -> float | None:
        """Mean score, None without any."""
        return statistics.fmean(self.scores) if self.runs else None

    @property
    def sd(self) -> float | None:
        """Standard deviation of the scores (n − 1), None for fewer than two."""
        return statistics.stdev(self.scores) if len(self.runs) >= LEAST else None

    @property
    def bound(self) -> float | None:
        """The mean, worsened by its standard error: what candidates are compared by."""
        return self._moved(-1.0)

    def _moved(self, errors: float) -> float | None:
        """The mean moved by so many standard errors, upwards to the better."""
        if self.mean is None or self.sd is None:
            return None
        sign = 1 if METRICS[self.metric].mode == "max" else -1
        return self.mean + sign * errors * self.sd / math.sqrt(len(self.runs))

    def hopeless_beside(self, best: Candidate) -> bool:
        """Whether even its mean, bettered by its error, is worse than the bound of `best`."""
        own, bound = self._moved(1.0), best.bound
        if own is None or bound is None or len(self.runs) < LEAST_TO_DROP:
            return False
        return own < bound if METRICS[self.metric].mode == "max" else own > bound

    def summary(self, *, dropped: bool) -> dict[str, Any]:
        """What `summary.json` says of it."""
        return {
            "number": self.trial.number,
            "search_score": self.trial.score,
            "seeds": [r.config.seed for r in self.runs],
            "scores": self.scores,
            "mean": self.mean,
            "sd": self.sd,
            "bound": self.bound,
            "dropped": dropped,
        }


def replicate_seed(search_seed: int, number: int, index: int) -> int:
    """The seed of a trial's replicate `index`, from 1."""
    return mix_seed(search_seed, number, index) % 2**32


def replicates(study: optuna.Study, trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Every replicate that has been handed out, by number and index."""
    by_number = {t.number: t for t in trials}
    found = []
    for name, value in study.user_attrs.items():
        if name.startswith(_PREFIX):
            number, index = (int(part) for part in name.removeprefix(_PREFIX).split("."))
            found.append(_from_attribute(by_number[number], index, value))
    return sorted(found, key=lambda r: r.key)


def check_count(study: optuna.Study, count: int) -> None:
    """Raise `UserError` when `study` was run with more replicates than `count`.

    With fewer, another trial could win and read the test side, by nothing but a forgotten flag.
    """
    indices = (name.rsplit(".", 1)[1] for name in study.user_attrs if name.startswith(_PREFIX))
    most = max(map(int, indices), default=1)
    if count < most:
        raise UserError(
            f"search '{study.study_name}' has replicates on {most} seeds, which --replicates "
            f"{count} would not count: give --replicates {most} or more, or another --name"
        )


def save_replicate(study: optuna.Study, replicate: TrialRecord) -> None:
    """Write a replicate as it stands now."""
    value = {
        "seed": replicate.config.seed,
        "micro_batch": replicate.config.micro_batch,
        "state": replicate.state,
        "epochs": replicate.epochs,
        "score": replicate.score,
        "seconds": replicate.seconds,
        "error": replicate.error,
    }
    study.set_user_attr(f"{_PREFIX}{replicate.number}.{replicate.key.replicate}", value)


def _from_attribute(trial: TrialRecord, index: int, value: Mapping[str, Any]) -> TrialRecord:
    return dataclasses.replace(
        trial,
        key=TrialKey(trial.number, index),
        state=value["state"],
        score=value["score"],
        config=trial.config.replace({k: value[k] for k in ("seed", "micro_batch") if k in value}),
        epochs=value["epochs"],
        seconds=value["seconds"],
        error=value["error"],
    )


def candidates(
    trials: Sequence[TrialRecord], runs: Sequence[TrialRecord], *, metric: str, count: int
) -> list[Candidate]:
    """The best trials by their score in the search, and the replicates of each; best bound first.

    A trial that has proven itself on `LEAST` seeds stays a candidate when later trials have higher
    single scores. None with a `count` of 1: nothing is run again.
    """
    if count < LEAST:
        return []
    of_trial: dict[int, list[TrialRecord]] = {}
    for run in sorted(runs, key=lambda r: r.key):
        of_trial.setdefault(run.number, []).append(run)
    found = []
    for place, trial in enumerate(ranked(trials, metric)):
        own = of_trial.get(trial.number, [])
        counted = tuple(r for r in own if r.state in ("finished", "diverged"))
        if place < CANDIDATES or len(counted) >= LEAST:
            failure = next((r.error for r in own if r.state == "failed"), None)
            found.append(Candidate(trial, counted, metric, failure))
    return sorted(found, key=_place)


def standing(found: Sequence[Candidate]) -> list[Candidate]:
    """Those of `found` that can still win, in their order: nothing failed, and not hopeless."""
    able = [c for c in found if c.failure is None]
    leaders = [c for c in able if len(c.runs) >= LEAST_TO_DROP]
    return [c for c in able if not any(c.hopeless_beside(best) for best in leaders[:1])]


def choose(found: Sequence[Candidate], count: int) -> Candidate | None:
    """The candidate with the best bound over all `count` seeds, of equals the lower number."""
    whole = [c for c in standing(found) if len(c.runs) >= count and c.finished]
    return next(iter(whole), None)


def _place(c: Candidate) -> tuple[bool, float, int]:
    """Best bound first; those without one, by their score in the search, last."""
    sign = 1 if METRICS[c.metric].mode == "max" else -1
    value = c.trial.score if c.bound is None else c.bound
    # Rounded, or the last bit of a sum would decide between equals.
    return c.bound is None, -sign * round(value or 0.0, 9), c.trial.number
