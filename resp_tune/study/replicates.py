"""Choose the winner among the best trials by replicates: the same configs with other seeds.

The score that made a trial a candidate does not count: it was selected for being high. Replicates
are not trials of the study, which holds what the sampler proposed, but attributes of it:
`resp_tune.replicate.NUMBER.INDEX`, and `resp_tune.replicate.NUMBER.INDEX.epochs.FIRST` for the rows
of a report (release 0.1.0 kept the rows in the first).
"""

from __future__ import annotations

import dataclasses
import logging
import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna

from resp_tune.common.trial_key import TrialKey
from resp_tune.errors import UserError
from resp_tune.study.optuna_internals import one_commit
from resp_tune.study.study import Rows, TrialRecord, epochs_key, ranked, read_epochs
from resp_tune.study.trial_queue import ProposalSource, TrialSettings
from resp_tune.training.metrics import METRICS
from resp_tune.training.seeds import mix_seed

log = logging.getLogger(__name__)

MAX_CANDIDATES = 4  # by the score of the search
MIN_REPLICATES = 2  # for a mean and its standard error
# Two values are often close together by chance: after two replicates, one in thirteen candidates
# that are better by half a standard deviation would be dropped.
MIN_REPLICATES_TO_DROP = 3
_PREFIX = "resp_tune.replicate."
_STORED = ("state", "score", "seconds", "error")  # of a replicate, besides config and epochs


@dataclass(frozen=True)
class Candidate:
    """A trial of the search and its replicates that count, by index.

    A diverged replicate counts with the metric's worst value but has no usable network. `failure`:
    the error of a failed replicate, which excludes the candidate until it is run again.
    """

    trial: TrialRecord
    runs: tuple[TrialRecord, ...]
    metric: str
    failure: str | None

    @property
    def scores(self) -> list[float]:
        """The score of each replicate."""
        worst = METRICS[self.metric].worst
        return [worst if r.score is None else r.score for r in self.runs]

    @property
    def finished(self) -> list[TrialRecord]:
        """The replicates whose networks can be used."""
        return [r for r in self.runs if r.state == "finished"]

    @property
    def mean(self) -> float | None:
        """The mean score, or None without replicates."""
        return statistics.fmean(self.scores) if self.runs else None

    @property
    def sd(self) -> float | None:
        """The standard deviation of the scores (n − 1), or None for fewer than two."""
        return statistics.stdev(self.scores) if len(self.runs) >= MIN_REPLICATES else None

    @property
    def lower_bound(self) -> float | None:
        """The mean made worse by its standard error, by which candidates are compared."""
        return self._shifted_mean(-1.0)

    def _shifted_mean(self, errors: float) -> float | None:
        """Return the mean made better by `errors` standard errors."""
        if self.mean is None or self.sd is None:
            return None
        return self.mean + _sign(self.metric) * errors * self.sd / math.sqrt(len(self.runs))

    def clearly_worse_than(self, best: Candidate) -> bool:
        """Return whether its mean made better by its error is worse than the bound of `best`."""
        own, bound, sign = self._shifted_mean(1.0), best.lower_bound, _sign(self.metric)
        if own is None or bound is None or len(self.runs) < MIN_REPLICATES_TO_DROP:
            return False
        return sign * own < sign * bound

    def summary(self, *, dropped: bool) -> dict[str, Any]:
        """Return the candidate's entry in `summary.json`."""
        return {
            "number": self.trial.number,
            "search_score": self.trial.score,
            "seeds": [r.config.seed for r in self.runs],
            "scores": self.scores,
            "mean": self.mean,
            "sd": self.sd,
            "bound": self.lower_bound,
            "dropped": dropped,
        }


def _sign(metric: str) -> int:
    return 1 if METRICS[metric].mode == "max" else -1


def replicate_seed(search_seed: int, number: int, index: int) -> int:
    """Return the seed of replicate `index` (from 1) of a trial."""
    return mix_seed(search_seed, number, index) % 2**32


def replicates(study: optuna.Study, trials: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Return every replicate that was handed out, by number and index."""
    values: dict[TrialKey, Any] = {}
    reports: dict[TrialKey, dict[str, Any]] = {}
    for name, value in _attributes(study).items():
        number, index, *report = name.split(".", 2)
        key = TrialKey(int(number), int(index))
        if report:
            reports.setdefault(key, {})[report[0]] = value
        else:
            values[key] = value
    by_number, found = {t.number: t for t in trials}, []
    for key, value in sorted(values.items()):
        trial, own = by_number[key.number], {name: value[name] for name in _STORED}
        config = trial.config.replace({k: value[k] for k in ("seed", "micro_batch") if k in value})
        epochs = read_epochs({**value, **reports.get(key, {})})
        found.append(dataclasses.replace(trial, key=key, config=config, epochs=epochs, **own))
    return found


def _attributes(study: optuna.Study) -> dict[str, Any]:
    attributes = study.user_attrs.items()
    return {k.removeprefix(_PREFIX): v for k, v in attributes if k.startswith(_PREFIX)}


def check_count(study: optuna.Study, count: int) -> None:
    """Raise `UserError` if `study` was run with more replicates than `count`.

    With fewer, another trial could win and be scored on the test split because of a forgotten flag.
    """
    most = max((int(name.split(".")[1]) for name in _attributes(study)), default=1)
    if count < most:
        raise UserError(
            f"search '{study.study_name}' has {most} replicates of a trial, of which --replicates "
            f"{count} would ignore some: give --replicates {most} or more, or another --name"
        )


def save_replicate(
    study: optuna.Study, replicate: TrialRecord, rows: Sequence[Mapping[str, float]] = ()
) -> None:
    """Store a replicate, and `rows`, those at the end of its epochs that are not stored yet."""
    key, config = replicate.key, replicate.config
    name = f"{_PREFIX}{key.number}.{key.replicate}"
    value = {"seed": config.seed, "micro_batch": config.micro_batch}
    value |= {name: getattr(replicate, name) for name in _STORED}
    with one_commit(study):
        if rows:
            study.set_user_attr(f"{name}.{epochs_key(rows)}", rows)
        study.set_user_attr(name, value)


def candidates(
    trials: Sequence[TrialRecord], runs: Sequence[TrialRecord], *, metric: str, count: int
) -> list[Candidate]:
    """Return the best trials of the search with their replicates, best bound first.

    A trial with `MIN_REPLICATES` replicates stays a candidate when later trials have higher single
    scores. With a `count` of 1 nothing is replicated, and there are no candidates.
    """
    if count < MIN_REPLICATES:
        return []
    of_trial: dict[int, list[TrialRecord]] = {}
    for run in sorted(runs, key=lambda r: r.key):
        of_trial.setdefault(run.number, []).append(run)
    chosen = []
    for rank, trial in enumerate(ranked(trials, metric)):
        own = of_trial.get(trial.number, [])
        counted = tuple(r for r in own if r.state in ("finished", "diverged"))
        if rank < MAX_CANDIDATES or len(counted) >= MIN_REPLICATES:
            failure = next((r.error for r in own if r.state == "failed"), None)
            chosen.append(Candidate(trial, counted, metric, failure))
    return sorted(chosen, key=_order)


def eligible(ordered: Sequence[Candidate]) -> list[Candidate]:
    """Return the candidates that can still win: without a failure, not clearly worse than the best.

    `ordered`: best bound first, as the result.
    """
    able = [c for c in ordered if c.failure is None]
    leaders = [c for c in able if len(c.runs) >= MIN_REPLICATES_TO_DROP]
    return [c for c in able if not any(c.clearly_worse_than(best) for best in leaders[:1])]


def selectable(ordered: Sequence[Candidate], count: int) -> list[Candidate]:
    """Return the eligible candidates that have all `count` replicates, best first."""
    return [c for c in eligible(ordered) if len(c.runs) >= count and c.finished]


def _order(c: Candidate) -> tuple[bool, float, int]:
    """Sort by bound, best first; then those without one, by their score in the search."""
    value = c.trial.score if c.lower_bound is None else c.lower_bound
    # Rounded, or the last bit of a sum would decide between equals.
    return c.lower_bound is None, -_sign(c.metric) * round(value or 0.0, 9), c.trial.number


class ReplicateSource(ProposalSource):
    """`count` replicates of each of the best of `trials`.

    The first replicates of all candidates come before their second ones. A candidate that is
    clearly worse than the best gets no more replicates unless the best falls back, and its running
    ones stop at their next report. Interrupted replicates are resumed, and failed ones are tried
    again, by the next run of the command.
    """

    def __init__(
        self,
        study: optuna.Study,
        trials: Sequence[TrialRecord],
        settings: TrialSettings,
        count: int,
    ) -> None:
        super().__init__(study, settings)
        self.trials, self.count = trials, count
        self._runs = {
            r.key: dataclasses.replace(r, state=None) if r.state == "failed" else r
            for r in replicates(study, trials)
        }
        self._reported_dropped: set[int] = set()

    def candidates(self) -> list[Candidate]:
        """Return the candidates with their replicates until now, best first."""
        runs = list(self._runs.values())
        return candidates(self.trials, runs, metric=self.settings.metric, count=self.count)

    def missing(self, running: Collection[TrialKey] = ()) -> list[TrialKey]:
        """Return the replicates to hand out, in that order.

        One that was stopped is resumed when its trial may win again.
        """
        trials = ranked([c.trial for c in eligible(self.candidates())], self.settings.metric)
        keys = (TrialKey(t.number, i) for i in range(1, self.count + 1) for t in trials)
        ended = {k for k, r in self._runs.items() if r.state not in (None, "pruned")}
        return [key for key in keys if key not in running and key not in ended]

    def stop_reason(self, key: TrialKey, rows: Rows = ()) -> str | None:
        """Return why a running replicate must stop at its next report, or None."""
        able = any(c.trial.number == key.number for c in eligible(self.candidates()))
        return None if able else "dropped"

    def propose(self, running: Collection[TrialKey]) -> TrialRecord | None:
        """Return the next replicate, stored as running, or None while there is none."""
        missing = self.missing(running)
        if not missing:
            return None
        key = missing[0]
        if (run := self._runs.get(key)) is None:
            trial = next(t for t in self.trials if t.number == key.number)
            seed = replicate_seed(self.settings.seed, key.number, key.replicate)
            config = trial.config.replace({"seed": seed})
            run = TrialRecord(key, None, None, config, trial.values, [], 0.0, None)
        run = dataclasses.replace(run, state=None)
        self.save(run)
        return run

    def save(self, run: TrialRecord, rows: Rows = (), reason: str | None = None) -> None:
        """Store a replicate, and log what its end means for its trial."""
        save_replicate(self.study, run, rows)
        self._runs[run.key] = run
        if run.state == "failed":
            log.info(
                f"replicate {run.key.label} failed ({reason}): trial {run.number} cannot win; "
                "rerun the same command to try it again"
            )
        if run.state is not None:
            self._report_dropped()

    def end_abandoned(self, running: Collection[TrialKey]) -> list[TrialRecord]:
        """End replicates that an earlier driver left running, of trials that cannot win now."""
        abandoned = [
            dataclasses.replace(run, state="pruned")
            for key, run in self._runs.items()
            if run.state is None and key not in running
        ]
        for run in abandoned:
            self.save(run)
        return abandoned

    def _report_dropped(self) -> None:
        ordered = self.candidates()
        best, able = ordered[:1], eligible(ordered)
        for c in ordered[1:]:
            unfinished = len(c.runs) < self.count and c.trial.number not in self._reported_dropped
            if unfinished and c not in able and c.failure is None:
                self._reported_dropped.add(c.trial.number)
                log.info(
                    f"trial {c.trial.number} gets no more replicates: {self.settings.metric} "
                    f"{c.mean:.3f} ± {c.sd:.3f} over {len(c.runs)}, beside "
                    f"{best[0].mean:.3f} ± {best[0].sd:.3f} of trial {best[0].trial.number}"
                )
