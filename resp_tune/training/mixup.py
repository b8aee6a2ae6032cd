"""Mixup: pairs of items are blended, and so are their losses (Zhang et al., arXiv:1710.09412)."""

from __future__ import annotations

import numpy as np
import torch


def draw_weights(items: int, alpha: float, seed: int) -> torch.Tensor | None:
    """The weight of each item in its pair, float32 `[items]`, from Beta(α, α); None for α = 0.

    The greater share stays with the item itself: which of a pair comes first says nothing.
    """
    if alpha == 0:
        return None
    drawn = np.random.default_rng(seed).beta(alpha, alpha, items)
    return torch.from_numpy(np.maximum(drawn, 1 - drawn)).float()


def blend(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Each item of `x` `[items, …]` mixed with the one before it, by `weight` `[items]`."""
    return torch.lerp(x.roll(1, 0), x, weight.view(-1, *[1] * (x.dim() - 1)))


def blended_loss(own: torch.Tensor, other: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The loss of each blended item from its losses against its own label and the other's."""
    return torch.lerp(other, own, weight)
