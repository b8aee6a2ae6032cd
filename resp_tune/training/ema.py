"""An exponential moving average of a network's weights, which is what gets evaluated."""

from __future__ import annotations

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

M = TypeVar("M", bound=nn.Module)


class ModelAverage(Generic[M]):
    """`network` holds `decay · itself + (1 − decay) · the trained one`, after every step.

    In early steps the decay is smaller, `(1 + step) / (10 + step)`, or the random weights of the
    start would linger. Running statistics are averaged like weights; counters are copied.
    """

    def __init__(self, trained: M, decay: float) -> None:
        self.network = copy.deepcopy(trained).requires_grad_(False)
        self.decay = decay
        self._pairs = list(  # state_dict gives the tensors themselves, not copies
            zip(self.network.state_dict().values(), trained.state_dict().values(), strict=True)
        )

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the trained network as it stands after `step` steps, from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for own, of in self._pairs:
            if own.is_floating_point():
                own.lerp_(of, 1 - decay)
            else:
                own.copy_(of)
