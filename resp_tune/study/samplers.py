"""Make Optuna samplers by name, and let them suggest trials as points of a search space."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GPSampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState
from threadpoolctl import threadpool_limits

from resp_tune.space.parameters import Categorical
from resp_tune.space.search_space import SearchSpace
from resp_tune.study.optuna_internals import SafeCmaEsSampler, ScoredStudy, silence_qmc_sampler
from resp_tune.training.seeds import mix_seed

# Random trials before the model is used: a fifth of a typical search.
STARTUP_TRIALS = 8
MAX_DRAWS = 5  # of the sampler, for one trial
MAX_POINTS = 20_000  # that are listed to find one that was not tried


class _LearnsFromAll(BaseSampler):
    """A sampler that sees a `ScoredStudy`, and so learns from pruned and diverged trials too."""

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        return super().infer_relative_search_space(ScoredStudy.of(study), trial)  # type: ignore[safe-super]  # Optuna's sampler follows

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return super().sample_relative(ScoredStudy.of(study), trial, search_space)  # type: ignore[safe-super]

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        view = ScoredStudy.of(study)
        return super().sample_independent(view, trial, param_name, param_distribution)  # type: ignore[safe-super]


class _Tpe(_LearnsFromAll, TPESampler):
    pass


class _Gp(_LearnsFromAll, GPSampler):
    """Optuna's GP sampler with one thread for each library.

    It makes thousands of small calls, in which the thread pools of numpy, SciPy and torch compete:
    on two cores a suggestion took three to six times the CPU time. Optuna sets a variable that is
    not read after OpenBLAS has been loaded (`findings/optuna_gp_leaves_openblas_threads.sh`).
    """

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        with threadpool_limits(limits=1):
            return super().sample_relative(study, trial, search_space)


class _CmaEs(_LearnsFromAll, SafeCmaEsSampler):
    pass


def _tpe(seed: int) -> BaseSampler:
    # TPE models all parameters jointly and counts running trials as poor ones by default, so that
    # concurrent trials spread out. With `group`, parameters under the same conditions are modelled
    # jointly as well; without conditions it changes nothing, to the last bit.
    return _Tpe(seed=seed, n_startup_trials=STARTUP_TRIALS, group=True)


def _gp(seed: int) -> BaseSampler:
    return _Gp(
        seed=seed,
        n_startup_trials=STARTUP_TRIALS,
        independent_sampler=_tpe(seed),
        warn_independent_sampling=False,  # `unsupported_fields` says it in the plan
    )


def _cmaes(seed: int) -> BaseSampler:
    return _CmaEs(seed=seed, independent_sampler=_tpe(seed), warn_independent_sampling=False)


def _qmc(seed: int) -> BaseSampler:
    silence_qmc_sampler()
    return QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False)


SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": _tpe,
    "gp": _gp,
    "cmaes": _cmaes,
    "qmc": _qmc,
    "random": lambda seed: RandomSampler(seed=seed),
}


def make_sampler(name: str, seed: int) -> BaseSampler:
    """Return the sampler `name`, one of `SAMPLERS`."""
    with warnings.catch_warnings():
        # pyproject.toml bounds Optuna, so experimental parts cannot change.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return SAMPLERS[name](seed)


def resumed_sampler(name: str, seed: int, trials: int) -> BaseSampler:
    """Return the sampler of a search with `seed` that has `trials` trials already.

    With the same seed, most samplers would suggest to a resumed search what they suggested at
    first. The study keeps the position of `qmc` in its sequence, which another seed would leave.
    """
    return make_sampler(name, mix_seed(seed, 0 if name == "qmc" else trials) % 2**32)


def unsupported_fields(name: str, space: SearchSpace) -> list[str]:
    """Return the searched fields that sampler `name` cannot model and leaves to TPE."""
    unseen: dict[str, tuple[type, ...]] = {"gp": (), "cmaes": (Categorical,)}
    if name not in unseen:
        return []
    return [n for n, p in space.parameters.items() if p.when or isinstance(p, unseen[name])]


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
