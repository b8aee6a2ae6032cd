"""Propose replicates of a search's best trials: the same configs with other seeds."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Collection, Sequence

import optuna

from resp_tune.common.trial_key import TrialKey
from resp_tune.study.replicates import (
    Candidate,
    candidates,
    eligible,
    replicate_seed,
    replicates,
    save_replicate,
)
from resp_tune.study.study import TrialRecord, ranked
from resp_tune.study.trial_queue import ProposalSource, Rows, TrialSettings

log = logging.getLogger(__name__)


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

    def stop_reason(self, key: TrialKey) -> str | None:
        """Return why a running replicate must stop at its next report, or None."""
        able = any(c.trial.number == key.number for c in eligible(self.candidates()))
        return None if able else "dropped"

    def propose(self, running: Collection[TrialKey]) -> TrialRecord | None:
        """Return the next replicate, stored as running, or None while there is none."""
        missing = self.missing(running)
        if not missing:
            return None
        key = missing[0]
        run = dataclasses.replace(self._runs.get(key) or self._new(key), state=None)
        self.save(run)
        return run

    def _new(self, key: TrialKey) -> TrialRecord:
        trial = next(t for t in self.trials if t.number == key.number)
        seed = replicate_seed(self.settings.seed, key.number, key.replicate)
        config = trial.config.replace({"seed": seed})
        return TrialRecord(key, None, None, config, trial.values, [], 0.0, None)

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
