"""Keep an exponential moving average of a network's weights, which is what is evaluated."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


class ModelAverage(Generic[M]):
    """After every step, `network` becomes `decay · network + (1 − decay) · trained`.

    In early steps the decay is smaller, `(1 + step) / (10 + step)`, so that the random initial
    weights vanish. Running statistics are averaged like weights; counters are copied.
    """

    def __init__(self, trained: M, decay: float) -> None:
        self.network = copy.deepcopy(trained).requires_grad_(False)
        self.decay = decay
        self._pairs = list(  # state_dict gives the tensors themselves, not copies
            zip(self.network.state_dict().values(), trained.state_dict().values(), strict=True)
        )

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average after the `step`-th step, counted from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for own, of in self._pairs:
            if own.is_floating_point():
                own.lerp_(of, 1 - decay)
            else:
                own.copy_(of)
