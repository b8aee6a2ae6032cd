"""Let a sampler draw from a finite table of trials."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from resp_tune.space.search_space import SearchSpace
from resp_tune.study.samplers import SpaceSampler


class Grid:
    """The recorded points, with each parameter scaled to 0…1.

    The distance of two points is Euclidean over all parameters; one that only one of the two has,
    or a category in which they differ, counts 1. A parameter that is searched by its logarithm is
    scaled by that.
    """

    def __init__(self, space: SearchSpace, params: Sequence[Mapping[str, Any]]) -> None:
        self.distributions, self.params = space.distributions, params
        self.categorical = np.array(
            [isinstance(d, CategoricalDistribution) for d in self.distributions.values()]
        )
        self.points = np.array([self._scaled(each) for each in params])

    def _scaled(self, params: Mapping[str, Any]) -> list[float]:
        values = []
        for name, distribution in self.distributions.items():
            if name not in params:
                values.append(math.nan)
                continue
            value: float = distribution.to_internal_repr(params[name])
            if not isinstance(distribution, CategoricalDistribution):
                low, high = float(distribution.low), float(distribution.high)
                if distribution.log:
                    value, low, high = math.log(value), math.log(low), math.log(high)
                value = (value - low) / (high - low) if high > low else 0.0
            values.append(value)
        return values

    def nearest(self, params: Mapping[str, Any], untried: npt.NDArray[np.bool_]) -> int:
        """Return the untried point that is nearest to `params`; the first of equals."""
        own = np.array(self._scaled(params))
        indices = np.flatnonzero(untried)
        points = self.points[indices]
        squares = (points - own) ** 2
        squares[:, self.categorical] = points[:, self.categorical] != own[self.categorical]
        absent = np.isnan(points), np.isnan(own)[None, :]
        squares = np.where(absent[0] | absent[1], absent[0] != absent[1], squares)
        return int(indices[squares.sum(axis=1).argmin()])


class TableSampler(SpaceSampler):
    """Replaces what a sampler suggests by the nearest recorded point that was not tried yet.

    The study then has the recorded point's parameters, so the sampler learns from what was really
    trained. `first` is the point of the first trial, if it is not the sampler's. The sampler always
    gets `study`, if that is set: Optuna's Hyperband pruner would show it a part of the trials in a
    view that resp_tune's samplers cannot use.
    """

    study: optuna.Study | None = None

    def __init__(
        self, sampler: BaseSampler, space: SearchSpace, grid: Grid, first: int | None = None
    ) -> None:
        super().__init__(sampler, space)
        self.grid, self.first = grid, first
        self.untried = np.ones(len(grid.params), dtype=bool)
        self.last = -1  # the point that was drawn last

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the parameters of a recorded point."""
        if self.first is not None:
            self.last, self.first = self.first, None
        else:
            self.last = self.grid.nearest(self._draw(self.study or study, trial), self.untried)
        self.untried[self.last] = False
        return dict(self.grid.params[self.last])
