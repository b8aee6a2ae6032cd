"""Correct for unbalanced classes, in the loss of each item or in the clips of an epoch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.functional import cross_entropy

from resp_tune.config import Balance, TrialConfig

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
    entropy = partial(cross_entropy, reduction="none", label_smoothing=config.label_smoothing)
    if config.balance == "logit_adjustment":
        # A class without training clips gets the prior of half a clip, so that its log is finite.
        prior = LOGIT_TAU * (count.clamp(min=0.5) / count.sum()).log()
        return lambda logits, labels: entropy(logits + prior, labels)
    if config.balance == "focal":

        def focal(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            true = logits.softmax(1).gather(1, labels[:, None])[:, 0]
            return (1 - true) ** FOCAL_GAMMA * entropy(logits, labels)

        return focal
    if (weight := class_weights(config.balance, count)) is not None:
        return lambda logits, labels: weight[labels] * entropy(logits, labels)
    return entropy


def class_weights(balance: str, count: torch.Tensor) -> torch.Tensor | None:
    """Return the loss weight of each class from its number of clips, None if all are equal."""
    n = count.clamp(min=1)
    weight = {
        "inverse": 1 / n,
        "sqrt_inverse": n.rsqrt(),
        "effective_number": (1 - EFFECTIVE_BETA) / (1 - EFFECTIVE_BETA**n),
    }.get(balance)
    return None if weight is None else weight * count.sum() / (weight * count).sum()


def patient_weights(
    labels: torch.Tensor, patients: npt.NDArray[np.int64] | None = None
) -> torch.Tensor:
    """Return the weight of each clip, float64 `[clips]` with mean 1, from their int64 labels.

    Each class weighs the same, each patient of a class the same, and each clip of a patient in a
    class the same. Without `patients` `[clips]` every clip counts as a patient.
    """
    own = torch.arange(len(labels)) if patients is None else torch.from_numpy(patients)
    pairs, of_clip, clips = torch.unique(
        torch.stack([labels, own], dim=1), dim=0, return_inverse=True, return_counts=True
    )
    patients_of_class: torch.Tensor = torch.bincount(pairs[:, 0]).double()
    weight: torch.Tensor = 1 / (patients_of_class[labels] * clips[of_clip])
    return weight * len(labels) / weight.sum()


def sampling_weights(
    balance: Balance,
    train: torch.Tensor,
    validation: torch.Tensor,
    patients: npt.NDArray[np.int64] | None = None,
) -> torch.Tensor | None:
    """Return the relative rate at which a sampler draws each training clip, float64 `[clips]`.

    None if `balance` is not a sampler: each clip is shown once. `train`, `validation`: int64
    labels; `patients` `[clips]`: of the training clips.
    """
    if balance == "patient_sampler":
        return patient_weights(train, patients)
    if balance not in ("sampler", "sampler_all"):
        return None
    counted = train if balance == "sampler" else torch.cat([train, validation])
    return 1.0 / torch.bincount(counted)[train].double()


def draw_clips(
    clips: int, weights: torch.Tensor | None, generator: torch.Generator
) -> torch.Tensor:
    """Return the indices of the training clips of one epoch, int64 `[clips]`.

    With `weights` `[clips]` they are drawn with replacement, like `WeightedRandomSampler`; without,
    each comes once, in random order.
    """
    if weights is None:
        return torch.randperm(clips, generator=generator)
    return torch.multinomial(weights, clips, replacement=True, generator=generator)
