"""The samplers that choose configs, by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import optuna
from optuna.samplers import (
    BaseSampler,
    GPSampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)

from resp_tune.space.parameters import Categorical
from resp_tune.space.search_space import SearchSpace
from resp_tune.study.optuna_internals import SafeCmaEsSampler, silence_qmc_sampler


def _cmaes(seed: int) -> BaseSampler:
    return SafeCmaEsSampler(seed=seed, warn_independent_sampling=False)


def _gp(seed: int) -> BaseSampler:
    return GPSampler(seed=seed, warn_independent_sampling=False)


def _qmc(seed: int) -> BaseSampler:
    silence_qmc_sampler()  # `blind_to` says the same in our own words
    return QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False)


# TPE's own defaults take all parameters jointly and count running trials as poor ones, so that
# concurrent trials do not crowd; a fifth of a typical search is drawn at random first. `group`:
# parameters with the same conditions are taken jointly as well, instead of one by one; without
# conditions it changes nothing, to the last bit.
SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": lambda seed: TPESampler(seed=seed, n_startup_trials=8, group=True),
    "gp": _gp,
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
    if name == "qmc":  # whose dimensions are those of the first trial
        first = space.baseline().as_dict()
        return [n for n, p in space.parameters.items() if not p.active(first)]
    unseen: dict[str, tuple[type, ...]] = {"gp": (), "cmaes": (Categorical,)}
    if name not in unseen:
        return []
    return [n for n, p in space.parameters.items() if p.when or isinstance(p, unseen[name])]
