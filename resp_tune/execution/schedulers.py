"""The schedulers that stop poor trials early, restored from the study after a restart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, takewhile
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from resp_tune.cluster.ray_internals import asha_rungs, record_asha_result
from resp_tune.common.trial_key import TrialKey
from resp_tune.study.study import TrialRecord
from resp_tune.training.metrics import METRICS

REDUCTION = 3
# OneCycle's learning rate is still near its peak before a third of the schedule: what a trial
# scores there says little about its end.
GRACE = 0.35


def rungs(name: str, epochs: int) -> tuple[int, ...]:
    """Return the epochs after which scheduler `name` decides, ascending; empty for `none`."""
    if name == "none":
        return ()
    epoch, deciding = grace_period(epochs), []
    while epoch < epochs:
        deciding.append(epoch)
        epoch *= REDUCTION
    return tuple(deciding)


def grace_period(epochs: int) -> int:
    """Return the number of epochs that every trial gets."""
    return max(1, math.ceil(GRACE * epochs))


class ResumedAsha(AsyncHyperBandScheduler):
    """ASHA whose rungs may hold trials of an earlier run of the search, by their key.

    Such a trial has another id when it resumes; it must not be judged again where it has passed.
    """

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Give the rungs that a resumed trial had reached to its new id."""
        super().on_trial_add(tune_controller, trial)
        past_id = _past_id(trial.config["key"])
        for _, scores in asha_rungs(self):
            if past_id in scores:
                scores[trial.trial_id] = scores.pop(past_id)


def _past_id(key: TrialKey) -> str:
    return f"past-{key.label}"


def make_scheduler(
    name: str, *, epochs: int, metric: str, past: Sequence[TrialRecord]
) -> TrialScheduler:
    """Return scheduler `name`, with the rungs that the trials in `past` had reached."""
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
    deciding = rungs(name, epochs)
    for trial in past:
        values = (row.get(f"val_{metric}", math.nan) for row in trial.epochs)
        best_so_far = accumulate(takewhile(math.isfinite, values), better)
        for row, best in zip(trial.epochs, best_so_far, strict=False):
            if (epoch := int(row["epoch"])) in deciding:
                record_asha_result(scheduler, _past_id(trial.key), epoch, sign * best)
    return scheduler
