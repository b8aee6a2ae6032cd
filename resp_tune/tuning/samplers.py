"""The samplers that choose configs, by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import optuna
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)

from resp_tune.tuning.space import Categorical, SearchSpace


def _cmaes(seed: int) -> BaseSampler:
    return CmaEsSampler(seed=seed, warn_independent_sampling=False)


def _qmc(seed: int) -> BaseSampler:
    return QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False)


# TPE's own defaults take all parameters jointly and count running trials as poor ones, so that
# concurrent trials do not crowd; a fifth of a typical search is drawn at random first.
SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": lambda seed: TPESampler(seed=seed, n_startup_trials=8),
    "gp": lambda seed: GPSampler(seed=seed),
    "cmaes": _cmaes,
    "qmc": _qmc,
    "random": lambda seed: RandomSampler(seed=seed),
}


def make_sampler(name: str, seed: int) -> BaseSampler:
    """The sampler `name`, which must be one of `SAMPLERS`."""
    with warnings.catch_warnings():
        # What is experimental in Optuna is pinned by our constraints.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return SAMPLERS[name](seed)


def blind_to(name: str, space: SearchSpace) -> list[str]:
    """Searched fields that the sampler can only draw at random."""
    if name != "cmaes":
        return []
    return [n for n, p in space.parameters.items() if isinstance(p, Categorical)]
