"""The loss of an item, with the answers to unbalanced classes that a loss can give."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy

from resp_tune.config import TrialConfig

EFFECTIVE_BETA = 0.999  # of Cui et al., arXiv:1901.05555: how much clips of one class overlap
FOCAL_GAMMA = 2.0  # of Lin et al., arXiv:1708.02002
LOGIT_TAU = 1.0  # of Menon et al., arXiv:2007.07314

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def make_loss(config: TrialConfig, train: torch.Tensor, classes: int) -> Loss:
    """The loss `(logits [items, classes], labels [items]) → [items]` that `config` asks for.

    `train`: int64 labels of the training side, on the device of the logits. Cross entropy with
    `label_smoothing`; `balance` may weight it by class (mean weight 1 over the training clips),
    make it focal, or add the log prior to the logits that are trained.
    """
    count = torch.bincount(train, minlength=classes).float()
    balance, smoothing = config.balance, config.label_smoothing
    if balance == "logit_adjustment":
        # A class that training lacks gets the prior of half a clip: its log must stay finite.
        prior = LOGIT_TAU * (count.clamp(min=0.5) / count.sum()).log()
        return lambda logits, labels: _entropy(logits + prior, labels, smoothing)
    if balance == "focal":
        return lambda logits, labels: (
            (1 - _chosen(logits, labels)) ** FOCAL_GAMMA * _entropy(logits, labels, smoothing)
        )
    if (weight := class_weights(balance, count)) is not None:
        return lambda logits, labels: weight[labels] * _entropy(logits, labels, smoothing)
    return lambda logits, labels: _entropy(logits, labels, smoothing)


def class_weights(balance: str, count: torch.Tensor) -> torch.Tensor | None:
    """Loss weight of each class from its training clips `count`; None where all weigh the same."""
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


def _chosen(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Probability of the true class."""
    return logits.softmax(1).gather(1, labels[:, None])[:, 0]
