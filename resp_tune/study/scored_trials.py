"""Show samplers a score for each trial that has ended, also where the scheduler stopped it.

Optuna's GP and CMA-ES learn from trials in the state COMPLETE only, and a scheduler that stops two
of three trials would leave them with a third of what was seen. TPE takes any COMPLETE trial for
better than every PRUNED one, and a diverged trial is COMPLETE with the metric's worst value.
"""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Sequence

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState


def scored_trials(trials: Sequence[FrozenTrial], direction: StudyDirection) -> list[FrozenTrial]:
    """Return the trials of a study as a sampler should see them: COMPLETE with a score.

    A pruned trial has its last score plus the median of what finished trials gained between that
    epoch and their end: the score that it would have had if its learning curve were like theirs.
    The last score alone, which Optuna's CMA-ES takes with `consider_pruned_trials`, would rank it
    by its age among finished trials: too low if scores still rise, too high if they fall.

    A diverged trial is as far below the worst of these scores as that is below the best. That is
    low enough to be avoided where all others score alike, and near enough not to flatten the
    differences between the others (the metric's worst value may be far away). Replacing a failure
    by the worst value seen is the floor padding of Wakabayashi et al. (npj Computational Materials
    8, 180, 2022); the distance is ours.

    Other trials are unchanged, also pruned ones without any score.
    """
    finished = [t for t in trials if t.state == TrialState.COMPLETE and not _diverged(t)]
    gains = dict[int, float]()
    scores = {trial.number: float(trial.value or 0.0) for trial in finished}
    for trial in trials:
        if trial.state == TrialState.PRUNED and (last := _last_score(trial)) is not None:
            epoch, score = last
            if epoch not in gains:
                gains[epoch] = _median_gain(finished, epoch)
            scores[trial.number] = score + gains[epoch]
    floor = _floor(list(scores.values()), direction)
    seen = []
    for trial in trials:
        if trial.state == TrialState.PRUNED and trial.number in scores:
            trial = _complete(trial, scores[trial.number])
        elif _diverged(trial) and floor is not None:
            trial = _complete(trial, floor)
        seen.append(trial)
    return seen


def _diverged(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.COMPLETE and bool(trial.user_attrs.get("diverged"))


def _last_score(trial: FrozenTrial) -> tuple[int, float] | None:
    """Return the epoch and the value of the last finite score, or None without any."""
    finite = [(e, v) for e, v in trial.intermediate_values.items() if math.isfinite(v)]
    return max(finite, default=None)


def _median_gain(finished: Sequence[FrozenTrial], epoch: int) -> float:
    """Return the median change of the score from `epoch` to the end, 0 without finished trials."""
    gains = [(t.value or 0.0) - t.intermediate_values.get(epoch, math.nan) for t in finished]
    finite = [gain for gain in gains if math.isfinite(gain)]
    return statistics.median(finite) if finite else 0.0


def _floor(scores: Sequence[float], direction: StudyDirection) -> float | None:
    """Return a score below all others, or None where these do not differ."""
    low, high = min(scores, default=0.0), max(scores, default=0.0)
    if low == high:
        return None  # the metric's worst value, with which a diverged trial is stored
    return low - (high - low) if direction == StudyDirection.MAXIMIZE else high + (high - low)


def _complete(trial: FrozenTrial, score: float) -> FrozenTrial:
    trial = copy.copy(trial)
    trial.state = TrialState.COMPLETE
    trial.value = score
    return trial
