"""Draw the clips of an epoch, with corrections for unbalanced classes."""

from __future__ import annotations

import torch

from resp_tune.config import Balance


def draw_clips(
    balance: Balance, train: torch.Tensor, validation: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """Return the indices of the training clips of one epoch, int64 `[len(train)]`.

    `train`, `validation`: int64 labels. The samplers draw with replacement, like
    `WeightedRandomSampler`, with weight 1 / (count of the class); otherwise each clip comes once,
    in random order.
    """
    if balance not in ("sampler", "sampler_all"):
        return torch.randperm(len(train), generator=generator)
    counted = train if balance == "sampler" else torch.cat([train, validation])
    weights = 1.0 / torch.bincount(counted)[train].double()
    return torch.multinomial(weights, len(train), replacement=True, generator=generator)
