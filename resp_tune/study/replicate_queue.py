"""Hands out the replicates of a search's best trials and writes down what becomes of them."""

from __future__ import annotations

import dataclasses
import logging
import time
import uuid
from collections.abc import Sequence
from typing import Any

import optuna

from resp_tune.common.choices import State
from resp_tune.common.fault_points import fault_point
from resp_tune.common.trial_key import TrialKey
from resp_tune.config import TrialConfig
from resp_tune.study.replicates import (
    Candidate,
    candidates,
    replicate_seed,
    replicates,
    save_replicate,
    standing,
)
from resp_tune.study.study import TrialRecord, ranked, with_micro_batch
from resp_tune.study.trial_queue import Listener

log = logging.getLogger(__name__)


class ReplicateQueue:
    """Drives `count` replicates of each of the best of `trials`, as `TrialQueue` drives trials.

    All candidates' first seeds come before their second ones. Whoever is hopeless beside the best
    gets no more seeds, unless the best falls back, and running ones end at their next report.
    Replicates that were cut off go on, and failed ones are tried again, with the next run of the
    command. `listeners` may be added until the first is handed out.
    """

    def __init__(
        self,
        study: optuna.Study,
        trials: Sequence[TrialRecord],
        *,
        metric: str,
        epochs: int,
        seed: int,
        count: int,
    ) -> None:
        self.study, self.trials = study, trials
        self.metric, self.epochs, self.seed, self.count = metric, epochs, seed, count
        self.listeners: list[Listener] = []
        self._records: dict[TrialKey, TrialRecord] = {
            r.key: dataclasses.replace(r, state=None) if r.state == "failed" else r
            for r in replicates(study, trials)
        }
        self._clock: dict[TrialKey, float] = {}  # of those that run now
        self._said: set[int] = set()

    def candidates(self) -> list[Candidate]:
        """The candidates as they stand now, best first."""
        runs = list(self._records.values())
        return candidates(self.trials, runs, metric=self.metric, count=self.count)

    def left(self) -> list[TrialKey]:
        """Replicates to hand out, in that order."""
        able = ranked([c.trial for c in standing(self.candidates())], self.metric)
        keys = [TrialKey(t.number, index) for index in range(1, self.count + 1) for t in able]
        return [key for key in keys if key not in self._clock and self._open(key)]

    def _open(self, key: TrialKey) -> bool:
        """Whether it has not ended; one that was stopped goes on when its trial may win again."""
        return key not in self._records or self._records[key].state in (None, "pruned")

    def stopped(self, key: TrialKey) -> str | None:
        """Why a running replicate must not go on; None where it may."""
        able = any(c.trial.number == key.number for c in standing(self.candidates()))
        return None if able else "dropped"

    def config(self, key: TrialKey) -> TrialConfig:
        """What a running replicate goes on with."""
        return self._records[key].config

    def next_trial(self) -> dict[str, Any] | None:
        """What a worker needs to run the next replicate, None when there is none left."""
        left = self.left()
        if not left:
            self._end_left_behind()
            return None
        key = left[0]
        known = dataclasses.replace(self._records.get(key) or self._new(key), state=None)
        self._records[key] = known
        self._clock[key] = time.monotonic() - known.seconds
        self._save(key)
        for listener in self.listeners:
            listener.started(known, known.config.seed)
        fault_point("replicate-handed-out", str(key.folder))
        return {
            "key": key,
            "config": known.config,
            "epochs_reported": len(known.epochs),
            "attempt": uuid.uuid4().hex,
        }

    def _new(self, key: TrialKey) -> TrialRecord:
        number, index = key
        trial = next(t for t in self.trials if t.number == number)
        seed = replicate_seed(self.seed, number, index)
        return dataclasses.replace(
            trial,
            key=key,
            state=None,
            score=None,
            config=trial.config.replace({"seed": seed}),
            epochs=[],
            seconds=0.0,
            error=None,
        )

    def advance(
        self, key: TrialKey, rows: Sequence[dict[str, float]], micro_batch: int | None = None
    ) -> None:
        """Epochs of a running replicate; those that are known are skipped."""
        known = self._records[key]
        if micro_batch not in (None, known.config.micro_batch):
            self._records[key] = known = with_micro_batch(known, micro_batch)
            self._save(key)
        rows = [row for row in rows if row["epoch"] > len(known.epochs)]
        if not rows:
            return
        self._save(key, epochs=[*known.epochs, *rows])
        for listener in self.listeners:
            listener.advanced(self._records[key], rows)

    def end(self, key: TrialKey, state: State, reason: str | None = None) -> None:
        """The end of a running replicate."""
        score = self._records[key].epochs[-1][f"val_{self.metric}"] if state == "finished" else None
        error = reason if state == "failed" else None
        self._save(key, state=state, score=score, error=error)
        del self._clock[key]
        record = self._records[key]
        for listener in self.listeners:
            listener.ended(record)
        if state == "failed":
            log.info(
                f"replicate {key.label} failed ({reason}): trial {key.number} cannot win; the same "
                "command tries it again"
            )
        self._say_dropped()
        fault_point("replicate-ended", str(key.folder))

    def _say_dropped(self) -> None:
        found = self.candidates()
        best, able = found[0], standing(found)
        for c in found:
            wanted = len(c.runs) < self.count and c.trial.number not in self._said
            if wanted and c not in able and c.failure is None:
                self._said.add(c.trial.number)
                log.info(
                    f"trial {c.trial.number} is given no more seeds: {self.metric} "
                    f"{c.mean:.3f} ± {c.sd:.3f} over {len(c.runs)}, beside "
                    f"{best.mean:.3f} ± {best.sd:.3f} of trial {best.trial.number}"
                )

    def _end_left_behind(self) -> None:
        """Replicates that a killed driver left running, of trials that are no candidates now."""
        for key, record in self._records.items():
            if record.state is None and key not in self._clock:
                self._records[key] = dataclasses.replace(record, state="pruned")
                save_replicate(self.study, self._records[key])
                for listener in self.listeners:
                    listener.ended(self._records[key])

    def _save(self, key: TrialKey, **changes: Any) -> None:
        """The study first; listeners are told of what it holds."""
        seconds = time.monotonic() - self._clock[key]
        self._records[key] = dataclasses.replace(self._records[key], seconds=seconds, **changes)
        save_replicate(self.study, self._records[key])
