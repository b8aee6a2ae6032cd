"""Searches over a known objective that prune two of three trials and train nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import optuna
from optuna.trial import TrialState

from resp_tune.space.search_space import SearchSpace
from resp_tune.study.samplers import SpaceSampler, make_sampler

RUNG, EPOCHS = 7, 20  # those of ASHA with 20 epochs

Point = Mapping[str, float]  # by parameter, from 0 to 1


def unit_point(trial: optuna.trial.FrozenTrial) -> dict[str, float]:
    """Return where the parameters of a trial are in their ranges."""
    point = {}
    for name, d in trial.distributions.items():
        assert isinstance(
            d, optuna.distributions.FloatDistribution | optuna.distributions.IntDistribution
        )
        scale = math.log if d.log else float
        low, high = scale(d.low), scale(d.high)
        point[name] = (scale(trial.params[name]) - low) / (high - low)
    return point


def run_pruned(
    name: str,
    space: SearchSpace,
    score: Callable[[Point], float],
    *,
    seed: int,
    trials: int,
    gain: Callable[[Point], float] = lambda point: 0.15,
    diverges: Callable[[Point], bool] = lambda point: False,
) -> optuna.Study:
    """Run trials of the sampler `name`, one after another, of which ASHA's rule stops two of three.

    A trial scores `score` at its last epoch and `gain` less at the rung, with a little noise.
    """
    study = optuna.create_study(
        direction="maximize", sampler=SpaceSampler(make_sampler(name, seed), space)
    )
    study.enqueue_trial(space.baseline_params())
    noise, rung = np.random.default_rng(seed), list[float]()
    for _ in range(trials):
        trial = study.ask()
        space.suggest_values(trial)
        point = unit_point(study.get_trials(deepcopy=False)[-1])
        if diverges(point):
            trial.set_user_attr("diverged", True)
            study.tell(trial, 0.0)
            continue
        early = score(point) - gain(point) + noise.normal(0, 0.01)
        trial.report(early, RUNG)
        rung.append(early)
        if early < np.percentile(rung, 100 * 2 / 3):
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, score(point) + noise.normal(0, 0.01))
    return study
