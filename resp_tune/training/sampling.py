"""Which clips an epoch shows, and how often: answers to classes of very different size."""

from __future__ import annotations

import torch

from resp_tune.config import Balance


def draw_clips(
    balance: Balance, train: torch.Tensor, validation: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Indices of the training clips of one epoch, int64 `[len(train)]`.

    `train`, `validation`: int64 labels. The samplers draw with replacement, like
    `WeightedRandomSampler`, with weight 1 / (its class's count); the others show each clip once in
    random order.
    """
    if balance not in ("sampler", "sampler_all"):
        return torch.randperm(len(train), generator=generator)
    counted = train if balance == "sampler" else torch.cat([train, validation])
    weights = 1.0 / torch.bincount(counted)[train].double()
    return torch.multinomial(weights, len(train), replacement=True, generator=generator)
