"""The schedulers that stop poor trials early, by name, with what they knew before a restart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from resp_tune.common.trial_key import TrialKey
from resp_tune.study.study import TrialRecord
from resp_tune.training.metrics import METRICS

REDUCTION = 3
# OneCycle's learning rate is still near its peak before a third of the schedule: what a trial
# scores there says little about its end.
GRACE = 0.35


def milestones(name: str, epochs: int) -> tuple[int, ...]:
    """The epochs after which the scheduler decides, ascending; none where nothing is stopped."""
    if name == "none":
        return ()
    rungs = []
    rung = grace_period(epochs)
    while rung < epochs:
        rungs.append(rung)
        rung *= REDUCTION
    return tuple(rungs)


def grace_period(epochs: int) -> int:
    """Epochs that every trial is given."""
    return max(1, math.ceil(GRACE * epochs))


class ResumedAsha(AsyncHyperBandScheduler):
    """ASHA whose rungs may hold trials of an earlier run of the search, by their number.

    Such a trial has another id when it goes on; it must not be judged again where it has passed.
    """

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """A trial is about to run, for the first time or again."""
        super().on_trial_add(tune_controller, trial)
        past = _past(trial.config["key"])
        for _, recorded in self._brackets[0]._rungs:
            if past in recorded:
                recorded[trial.trial_id] = recorded.pop(past)


def _past(key: TrialKey) -> str:
    return f"past-{key.label}"


def make_scheduler(
    name: str, *, epochs: int, metric: str, past: Sequence[TrialRecord]
) -> TrialScheduler:
    """The scheduler `name`, with the rungs that the trials in `past` had reached."""
    if name == "none":
        return FIFOScheduler()  # type: ignore[no-untyped-call]  # Ray's
    mode = METRICS[metric].mode
    scheduler = ResumedAsha(
        time_attr="epoch",
        metric="best_so_far",
        mode=mode,
        max_t=epochs,
        grace_period=grace_period(epochs),
        reduction_factor=REDUCTION,
    )
    sign, better = (1.0, max) if mode == "max" else (-1.0, min)
    bracket = scheduler._brackets[0]  # no public way in; test_schedulers holds it to a fresh run
    for trial in past:
        key = SimpleNamespace(trial_id=_past(trial.key))
        best: float | None = None
        for row in trial.epochs:
            value = row.get(f"val_{metric}")
            if value is None or not math.isfinite(value):
                break
            best = value if best is None else better(best, value)
            if row["epoch"] in milestones(name, epochs):
                bracket.on_result(key, int(row["epoch"]), sign * best)  # type: ignore[arg-type]  # it reads the id
    return scheduler
