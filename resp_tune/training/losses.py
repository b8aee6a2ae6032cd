"""Compute the loss of each item, with corrections for unbalanced classes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy

from resp_tune.config import TrialConfig

EFFECTIVE_BETA = 0.999  # Cui et al., arXiv:1901.05555: how much clips of one class overlap
FOCAL_GAMMA = 2.0  # Lin et al., arXiv:1708.02002
LOGIT_TAU = 1.0  # Menon et al., arXiv:2007.07314

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def make_loss(config: TrialConfig, train: torch.Tensor, classes: int) -> Loss:
    """Return the loss of `config`, `(logits [items, classes], labels [items]) → [items]`.

    `train`: int64 labels of the training split, on the compute device of the logits. It is cross
    entropy with `label_smoothing`; `balance` may weight it by class (mean weight 1 over the
    training clips), make it focal, or add the log prior to the logits during training.
    """
    count = torch.bincount(train, minlength=classes).float()
    balance, smoothing = config.balance, config.label_smoothing
    if balance == "logit_adjustment":
        # A class without training clips gets the prior of half a clip, so that its log is finite.
        prior = LOGIT_TAU * (count.clamp(min=0.5) / count.sum()).log()
        return lambda logits, labels: _entropy(logits + prior, labels, smoothing)
    if balance == "focal":
        return lambda logits, labels: (
            (1 - _true_probability(logits, labels)) ** FOCAL_GAMMA
            * _entropy(logits, labels, smoothing)
        )
    if (weight := class_weights(balance, count)) is not None:
        return lambda logits, labels: weight[labels] * _entropy(logits, labels, smoothing)
    return lambda logits, labels: _entropy(logits, labels, smoothing)


def class_weights(balance: str, count: torch.Tensor) -> torch.Tensor | None:
    """Return the loss weight of each class from its number of clips, None if all are equal."""
    n = count.clamp(min=1)
    if balance == "inverse":
        weight = 1 / n
    elif balance == "sqrt_inverse":
        weight = n.rsqrt()
    elif balance == "effective_number":
        weight = (1 - EFFECTIVE_BETA) / (1 - EFFECTIVE_BETA**n)
    else:
        return None
    return weight * count.sum() / (weight * count).sum()


def _entropy(logits: torch.Tensor, labels: torch.Tensor, smoothing: float) -> torch.Tensor:
    return cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)


def _true_probability(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return the probability of the true class."""
    return logits.softmax(1).gather(1, labels[:, None])[:, 0]
