"""Hands out the replicates of a search's best trials and writes down what becomes of them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import optuna

from resp_tune.tuning.recorder import Listener
from resp_tune.tuning.replicates import (
    DROPPED,
    Candidate,
    by_bound,
    candidates,
    dropped,
    replicate_seed,
    replicates,
    save_replicate,
)
from resp_tune.tuning.study import State, TrialRecord

Key = tuple[int, int]  # number, index


class ReplicateRecorder:
    """Drives `count` replicates of each of the best of `trials`, as `Recorder` drives trials.

    All candidates' first seeds come before their second ones. Whoever then is hopeless beside the
    best is dropped: no more of its seeds are run, and running ones end at their next report.
    Replicates that were cut off, by a kill or by the deadline, go on with the next run of the
    command.
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
        deadline: float | None,
        listeners: Sequence[Listener],
        say: Callable[[str], None],
    ) -> None:
        self.study, self.trials = study, trials
        self.metric, self.epochs, self.seed, self.count = metric, epochs, seed, count
        self.deadline, self.listeners, self.say = deadline, listeners, say
        self._records = {(r.number, r.replicate): r for r in replicates(study, trials)}
        self._dropped = dropped(study)
        self._clock: dict[Key, float] = {}  # of those that run now
        self._drop_hopeless()

    def standing(self) -> list[Candidate]:
        """The candidates that can still win."""
        runs = list(self._records.values())
        found = candidates(self.trials, runs, self._dropped, metric=self.metric, count=self.count)
        return [c for c in found if not c.out]

    def left(self) -> list[Key]:
        """Replicates to hand out, in that order."""
        numbers = [c.trial.number for c in self.standing()]
        keys = [(n, index) for index in range(1, self.count + 1) for n in numbers]
        return [
            key
            for key in keys
            if key not in self._clock
            and (key not in self._records or self._records[key].state is None)
        ]

    def out_of_time(self) -> bool:
        """True once the deadline has passed."""
        return self.deadline is not None and time.monotonic() > self.deadline

    def stopped(self, key: Key) -> str | None:
        """Why a running replicate must not go on; None where it may."""
        if self.out_of_time():
            return "time budget"
        standing = any(c.trial.number == key[0] for c in self.standing())
        return None if standing else "dropped"

    def next_trial(self) -> dict[str, Any] | None:
        """What a worker needs to run the next replicate, None when there is none left."""
        left = [] if self.out_of_time() else self.left()
        if not left:
            return None
        key = left[0]
        known = self._records.get(key) or self._new(key)
        self._records[key] = known
        self._clock[key] = time.monotonic() - known.seconds
        self._save(key)
        for listener in self.listeners:
            listener.started(known, known.config.seed)
        return {
            "key": key,
            "folder": str(known.folder),
            "config": known.config.as_dict(),
            "epochs_reported": len(known.epochs),
        }

    def _new(self, key: Key) -> TrialRecord:
        number, index = key
        trial = next(t for t in self.trials if t.number == number)
        seed = replicate_seed(self.seed, number, index)
        return dataclasses.replace(
            trial,
            state=None,
            score=None,
            config=trial.config.replace({"seed": seed}),
            epochs=[],
            seconds=0.0,
            error=None,
            replicate=index,
        )

    def advance(self, key: Key, rows: Sequence[dict[str, float]]) -> None:
        """Epochs of a running replicate; those that are known are skipped."""
        known = self._records[key]
        rows = [row for row in rows if row["epoch"] > len(known.epochs)]
        if not rows:
            return
        self._save(key, epochs=[*known.epochs, *rows])
        for listener in self.listeners:
            listener.advanced(self._records[key], rows)

    def end(self, key: Key, state: State, reason: str | None = None) -> None:
        """The end of a running replicate. One that the deadline stopped has not ended."""
        if state == "pruned" and reason == "time budget":
            self._save(key)
            del self._clock[key]
            return
        score = self._records[key].epochs[-1][f"val_{self.metric}"] if state == "finished" else None
        error = reason if state == "failed" else None
        self._save(key, state=state, score=score, error=error)
        del self._clock[key]
        record = self._records[key]
        for listener in self.listeners:
            listener.ended(record)
        if state == "failed":
            self.say(f"replicate {record.label} failed ({reason}): trial {key[0]} cannot win")
        elif state != "pruned":
            self._drop_hopeless()

    def _drop_hopeless(self) -> None:
        ordered = by_bound(self.standing())
        for candidate in ordered[1:]:
            if len(candidate.runs) < self.count and candidate.hopeless_beside(ordered[0]):
                self._dropped = [*self._dropped, candidate.trial.number]
                self.study.set_user_attr(DROPPED, self._dropped)
                self.say(
                    f"trial {candidate.trial.number} is given no more seeds: {self.metric} "
                    f"{candidate.mean:.3f} ± {candidate.sd:.3f} over {len(candidate.runs)}, beside "
                    f"{ordered[0].mean:.3f} ± {ordered[0].sd:.3f} of trial "
                    f"{ordered[0].trial.number}"
                )

    def _save(self, key: Key, **changes: Any) -> None:
        """The study first; listeners are told of what it holds."""
        seconds = time.monotonic() - self._clock[key]
        self._records[key] = dataclasses.replace(self._records[key], seconds=seconds, **changes)
        save_replicate(self.study, self._records[key])
