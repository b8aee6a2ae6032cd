"""Make Optuna samplers by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, GPSampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial
from threadpoolctl import threadpool_limits

from resp_tune.space.parameters import Categorical
from resp_tune.space.search_space import SearchSpace
from resp_tune.study.optuna_internals import SafeCmaEsSampler, ScoredStudy, silence_qmc_sampler
from resp_tune.training.seeds import mix_seed

# Random trials before the model is used: a fifth of a typical search.
STARTUP_TRIALS = 8


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
