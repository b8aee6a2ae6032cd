"""Make Optuna samplers by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import optuna
from optuna.samplers import BaseSampler, GPSampler, QMCSampler, RandomSampler, TPESampler

from resp_tune.space.parameters import Categorical
from resp_tune.space.search_space import SearchSpace
from resp_tune.study.optuna_internals import SafeCmaEsSampler, silence_qmc_sampler


def _qmc(seed: int) -> BaseSampler:
    silence_qmc_sampler()  # `unsupported_fields` says the same in our own words
    return QMCSampler(seed=seed, scramble=True, warn_independent_sampling=False)


# TPE models all parameters jointly and counts running trials as poor ones by default, so that
# concurrent trials spread out. 8 random trials are a fifth of a typical search. With `group`,
# parameters under the same conditions are modelled jointly as well; without conditions it changes
# nothing, to the last bit.
SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "tpe": lambda seed: TPESampler(seed=seed, n_startup_trials=8, group=True),
    "gp": lambda seed: GPSampler(seed=seed, warn_independent_sampling=False),
    "cmaes": lambda seed: SafeCmaEsSampler(seed=seed, warn_independent_sampling=False),
    "qmc": _qmc,
    "random": lambda seed: RandomSampler(seed=seed),
}


def make_sampler(name: str, seed: int) -> BaseSampler:
    """Return the sampler `name`, one of `SAMPLERS`."""
    with warnings.catch_warnings():
        # pyproject.toml bounds Optuna, so experimental parts cannot change.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return SAMPLERS[name](seed)


def unsupported_fields(name: str, space: SearchSpace) -> list[str]:
    """Return the searched fields that the sampler can only draw at random."""
    if name == "qmc":  # whose dimensions are those of the first trial
        first = space.baseline().as_dict()
        return [n for n, p in space.parameters.items() if not p.active(first)]
    unseen: dict[str, tuple[type, ...]] = {"gp": (), "cmaes": (Categorical,)}
    if name not in unseen:
        return []
    return [n for n, p in space.parameters.items() if p.when or isinstance(p, unseen[name])]
