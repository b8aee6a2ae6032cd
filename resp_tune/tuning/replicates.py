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

from resp_tune.learning.metrics import METRICS
from resp_tune.learning.seeds import mix_seed
from resp_tune.tuning.study import TrialRecord, ranked

CANDIDATES = 4
LEAST = 2  # seeds that a mean and its standard error need
DROPPED = "resp_tune.dropped"
_PREFIX = "resp_tune.replicate."


@dataclass(frozen=True)
class Candidate:
    """A trial of the search and the replicates of it that count, by index.

    A replicate that has diverged counts with the metric's worst value. `out`: it was dropped, or
    one of its replicates has failed.
    """

    trial: TrialRecord
    runs: tuple[TrialRecord, ...]
    metric: str
    out: bool

    def first(self, n: int) -> Candidate:
        """The same with its first `n` replicates only."""
        return dataclasses.replace(self, runs=self.runs[:n])

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
        if own is None or bound is None:
            return False
        return own < bound if METRICS[self.metric].mode == "max" else own > bound

    def summary(self) -> dict[str, Any]:
        """What `summary.json` says of it."""
        return {
            "number": self.trial.number,
            "search_score": self.trial.score,
            "seeds": [r.config.seed for r in self.runs],
            "scores": self.scores,
            "mean": self.mean,
            "sd": self.sd,
            "bound": self.bound,
            "dropped": self.out,
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
    return sorted(found, key=lambda r: (r.number, r.replicate))


def save_replicate(study: optuna.Study, replicate: TrialRecord) -> None:
    """Write a replicate as it stands now."""
    value = {
        "seed": replicate.config.seed,
        "state": replicate.state,
        "epochs": replicate.epochs,
        "score": replicate.score,
        "seconds": replicate.seconds,
        "error": replicate.error,
    }
    study.set_user_attr(f"{_PREFIX}{replicate.number}.{replicate.replicate}", value)


def _from_attribute(trial: TrialRecord, index: int, value: Mapping[str, Any]) -> TrialRecord:
    return dataclasses.replace(
        trial,
        state=value["state"],
        score=value["score"],
        config=trial.config.replace({"seed": value["seed"]}),
        epochs=value["epochs"],
        seconds=value["seconds"],
        error=value["error"],
        replicate=index,
    )


def dropped(study: optuna.Study) -> list[int]:
    """Numbers of the candidates that were found hopeless."""
    numbers: list[int] = study.user_attrs.get(DROPPED, [])
    return numbers


def candidates(
    trials: Sequence[TrialRecord],
    runs: Sequence[TrialRecord],
    dropped: Sequence[int],
    *,
    metric: str,
    count: int,
) -> list[Candidate]:
    """The best trials by their score in the search, each with up to `count` of the replicates.

    None with a `count` of 1: nothing is run again.
    """
    if count < LEAST:
        return []
    found = []
    for trial in ranked(trials, metric)[:CANDIDATES]:
        own = [r for r in runs if r.number == trial.number and r.replicate <= count]
        out = trial.number in dropped or any(r.state == "failed" for r in own)
        counted = sorted(
            (r for r in own if r.state in ("finished", "diverged")), key=lambda r: r.replicate
        )
        found.append(Candidate(trial, tuple(counted), metric, out))
    return found


def choose(found: Sequence[Candidate]) -> Candidate | None:
    """The candidate with the best bound, of equals the lower number.

    Where the time was up before all had their seeds, each is judged by the first ones that all of
    them have. None where those are fewer than two.
    """
    standing = [c for c in found if not c.out]
    seeds = min((len(c.runs) for c in standing), default=0)
    if seeds < LEAST:
        return None
    judged = [c.first(seeds) for c in standing]
    return next(iter(by_bound([c for c in judged if c.finished])), None)


def by_bound(found: Sequence[Candidate]) -> list[Candidate]:
    """Best bound first; those without one, by their score in the search, last."""

    def key(c: Candidate) -> tuple[bool, float, int]:
        sign = 1 if METRICS[c.metric].mode == "max" else -1
        value = c.trial.score if c.bound is None else c.bound
        # Rounded, or the last bit of a sum would decide between equals.
        return c.bound is None, -sign * round(value or 0.0, 9), c.trial.number

    return sorted(found, key=key)
