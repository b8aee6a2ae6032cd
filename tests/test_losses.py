"""Losses and class weights against their papers' formulas, written out item by item."""

from __future__ import annotations

import math

import pytest
import torch
from support.toy import toy_config
from torch.nn.functional import cross_entropy

from resp_tune.training.balance import class_weights, make_loss

TRAIN = torch.tensor([0] * 60 + [1] * 25 + [2] * 5)
COUNT = torch.tensor([60.0, 25.0, 5.0])


def logits(items: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.randn(items, 3, generator=generator), torch.arange(items) % 3


def loss_of(balance: str, smoothing: float = 0.0) -> torch.Tensor:
    config = toy_config(balance=balance, label_smoothing=smoothing)
    return make_loss(config, TRAIN, 3)(*logits())


@pytest.mark.parametrize("balance", ["none", "sampler", "sampler_all", "patient_sampler"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_plain_cross_entropy(balance: str, smoothing: float) -> None:
    """With smoothing, the target is (1 − ε) of the label and ε / classes of every class."""
    given, labels = logits()
    log_p = given.log_softmax(1)
    target = torch.full((12, 3), smoothing / 3)
    target[torch.arange(12), labels] += 1 - smoothing
    torch.testing.assert_close(loss_of(balance, smoothing), -(target * log_p).sum(1))


def test_class_weights() -> None:
    """In proportion as the papers say, and of mean 1 over the training clips."""
    raw = {
        "inverse": [1 / 60, 1 / 25, 1 / 5],
        "sqrt_inverse": [60**-0.5, 25**-0.5, 5**-0.5],
        "effective_number": [(1 - 0.999) / (1 - 0.999**n) for n in (60, 25, 5)],
    }
    for balance, expected in raw.items():
        weight = class_weights(balance, COUNT)
        assert weight is not None
        torch.testing.assert_close(
            weight / weight[0], torch.tensor(expected) / expected[0], rtol=1e-4, atol=0
        )
        assert (weight * COUNT).sum().item() / 90 == pytest.approx(1)
        given, labels = logits()
        plain = cross_entropy(given, labels, reduction="none")
        torch.testing.assert_close(loss_of(balance), weight[labels] * plain)
    assert class_weights("focal", COUNT) is None


def test_a_class_that_training_lacks_stays_finite() -> None:
    train = torch.tensor([0, 0, 1])
    for balance in ("inverse", "sqrt_inverse", "effective_number", "logit_adjustment", "focal"):
        loss = make_loss(toy_config(balance=balance), train, 3)(*logits())
        assert loss.isfinite().all(), balance


def test_focal_loss() -> None:
    given, labels = logits()
    for item, found in enumerate(loss_of("focal")):
        p = given[item].softmax(0)[labels[item]].item()
        assert found.item() == pytest.approx(-((1 - p) ** 2) * math.log(p), rel=1e-4, abs=1e-6)


def test_logit_adjustment_learns_what_is_beyond_the_prior() -> None:
    """Constant logits of zero are then the prior itself, and their loss its entropy per class."""
    config = toy_config(balance="logit_adjustment")
    found = make_loss(config, TRAIN, 3)(torch.zeros(3, 3), torch.arange(3))
    torch.testing.assert_close(found, -(COUNT / 90).log())
