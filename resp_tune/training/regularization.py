"""Regularise by mixup and by averaging weights.

Mixup blends pairs of items, and their losses (Zhang et al., arXiv:1710.09412).
"""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn


def draw_weights(
    items: int, alpha: float, seed: int, device: torch.device | str = "cpu"
) -> torch.Tensor | None:
    """Draw the weight of each item in its pair, float32 `[items]`, from Beta(α, α).

    The larger share is the item's own, since the order within a pair is arbitrary. Returns None for
    α = 0.
    """
    if alpha == 0:
        return None
    drawn = np.random.default_rng(seed).beta(alpha, alpha, items)
    return torch.from_numpy(np.maximum(drawn, 1 - drawn)).float().to(device)


def blend(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Blend each item of `x` `[items, …]` with the one before it, by `weight` `[items]`."""
    return torch.lerp(x.roll(1, 0), x, weight.view(-1, *[1] * (x.dim() - 1)))


def blended_loss(own: torch.Tensor, other: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Blend the losses of each item against its own label and the other's."""
    return torch.lerp(other, own, weight)


class ModelAverage:
    """An exponential moving average of a network's weights, which is what is evaluated.

    After every step, `network` becomes `decay · network + (1 − decay) · trained`.

    In early steps the decay is smaller, `(1 + step) / (10 + step)`, so that the random initial
    weights vanish. Running statistics are averaged like weights; counters are copied.
    """

    def __init__(self, trained: nn.Module, decay: float) -> None:
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
