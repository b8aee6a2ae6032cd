"""Suggest all parameters of a trial together, as a point of the search space not tried before."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, QMCSampler, RandomSampler
from optuna.trial import FrozenTrial, TrialState

from resp_tune.space.search_space import SearchSpace

MAX_DRAWS = 5  # of the sampler, for one trial
MAX_POINTS = 20_000  # that are listed to find one that was not tried


class SpaceSampler(BaseSampler):
    """A sampler that draws the whole trial by `sampler`, and again where it was tried before.

    Samplers repeat themselves in small spaces: of 80 suggestions among 1296 points, half of those
    of CMA-ES. A trial counts as tried in whatever state. After `MAX_DRAWS` repetitions the point is
    random: among the untried ones, or in the whole space if that has too many to list. Only where
    every point was tried is one repeated.

    Values are rounded to their parameter's step, so that a suggested value and the baseline's are
    the same number.
    """

    def __init__(self, sampler: BaseSampler, space: SearchSpace) -> None:
        self.sampler, self.space = sampler, space

    def reseed_rng(self) -> None:
        """Draw other numbers from here on."""
        self.sampler.reseed_rng()

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Prepare the sampler for a trial."""
        self.sampler.before_trial(study, trial)

    def after_trial(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        state: TrialState,
        values: Sequence[float] | None,
    ) -> None:
        """Give the sampler the result of a trial."""
        self.sampler.after_trial(study, trial, state, values)

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Return the distributions of all parameters of the space."""
        return dict(self.space.distributions)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the parameters of a point of the space, a new one where possible."""
        past = [t.params for t in study.get_trials(deepcopy=False) if t.number != trial.number]
        for _ in range(MAX_DRAWS):
            params = self._draw(study, trial)
            if params not in past:
                return params
        if self.space.size <= MAX_POINTS:
            return _random_untried(self.space, past, seed=trial.number) or params
        sampler = RandomSampler(seed=trial.number)
        return self.space.draw_params(partial(sampler.sample_independent, study, trial))

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Return a value for a parameter that is not in the space."""
        return self.sampler.sample_independent(study, trial, param_name, param_distribution)

    def _draw(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
        # QMC takes any space; it would infer that of the first trial, and leave out parameters
        # that are not active there.
        known = dict[str, BaseDistribution](self.space.distributions)
        if not isinstance(self.sampler, QMCSampler):
            known = self.sampler.infer_relative_search_space(study, trial)
        modelled = self.sampler.sample_relative(study, trial, known)

        def draw(name: str, distribution: BaseDistribution) -> Any:
            if name in modelled:
                return modelled[name]
            return self.sampler.sample_independent(study, trial, name, distribution)

        return self.space.draw_params(draw)


def _random_untried(
    space: SearchSpace, past: Sequence[dict[str, Any]], seed: int
) -> dict[str, Any] | None:
    tried = {frozenset(params.items()) for params in past}
    untried = [p for p in space.points() if frozenset(p.items()) not in tried]
    return untried[np.random.default_rng(seed).integers(len(untried))] if untried else None
