"""Make the optimiser of a training and its learning-rate schedule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.optim.lr_scheduler import OneCycleLR

from resp_tune.config import TrialConfig


def make_optimizer(
    groups: Sequence[dict[str, Any]], config: TrialConfig, steps: int, *, fused: bool | None
) -> tuple[torch.optim.AdamW, OneCycleLR]:
    """Return AdamW and a OneCycle schedule over `steps` optimiser steps.

    A group of parameters without `lr` or `weight_decay` has that of the config; `lr` is the peak of
    the schedule. `fused`: the kind of AdamW, None for torch's choice.
    """
    peaks = [group.get("lr", config.lr) for group in groups]
    optimizer = torch.optim.AdamW(
        list(groups), lr=config.lr, weight_decay=config.weight_decay, fused=fused
    )
    return optimizer, OneCycleLR(optimizer, max_lr=peaks, total_steps=steps)
