"""Mixup: blend pairs of items, and their losses (Zhang et al., arXiv:1710.09412)."""

from __future__ import annotations

import numpy as np
import torch


def draw_weights(items: int, alpha: float, seed: int) -> torch.Tensor | None:
    """Draw the weight of each item in its pair, float32 `[items]`, from Beta(α, α).

    The larger share is the item's own, since the order within a pair is arbitrary. Returns None for
    α = 0.
    """
    if alpha == 0:
        return None
    drawn = np.random.default_rng(seed).beta(alpha, alpha, items)
    return torch.from_numpy(np.maximum(drawn, 1 - drawn)).float()


def blend(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Blend each item of `x` `[items, …]` with the one before it, by `weight` `[items]`."""
    return torch.lerp(x.roll(1, 0), x, weight.view(-1, *[1] * (x.dim() - 1)))


def blended_loss(own: torch.Tensor, other: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Blend the losses of each item against its own label and the other's."""
    return torch.lerp(other, own, weight)
