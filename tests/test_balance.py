"""Which clips an epoch shows, against torch's own sampler."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch.utils.data import WeightedRandomSampler

from resp_tune.training.balance import draw_clips

TRAIN = torch.tensor([0] * 70 + [1] * 20 + [2] * 8 + [3] * 2)
VALIDATION = torch.tensor([0] * 5 + [1] * 10 + [2] * 2 + [3] * 8)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def frequencies(draw: list[torch.Tensor]) -> torch.Tensor:
    return torch.bincount(TRAIN[torch.cat(draw)], minlength=4)


@pytest.mark.parametrize("balance", ["sampler", "sampler_all"])
def test_classes_come_as_often_as_from_weighted_random_sampler(balance: str) -> None:
    g = generator()
    ours = frequencies([draw_clips(balance, TRAIN, VALIDATION, g) for _ in range(100)])  # type: ignore[arg-type]  # a literal
    counted = TRAIN if balance == "sampler" else torch.cat([TRAIN, VALIDATION])
    weights = (1 / torch.bincount(counted).double())[TRAIN]
    sampler = WeightedRandomSampler(weights.tolist(), len(TRAIN), generator=generator(1))
    theirs = frequencies([torch.tensor(list(sampler)) for _ in range(100)])
    assert ours.sum() == theirs.sum() == 100 * len(TRAIN)
    assert stats.chi2_contingency(torch.stack([ours, theirs]).numpy()).pvalue > 1e-3
    shares = torch.bincount(TRAIN, weights=weights) / weights.sum()
    assert stats.chisquare(ours.numpy(), (shares * ours.sum()).numpy()).pvalue > 1e-3
    if balance == "sampler":
        assert shares.tolist() == pytest.approx([0.25] * 4)


def test_every_clip_of_a_class_is_drawn_alike() -> None:
    g = generator()
    drawn = torch.cat([draw_clips("sampler", TRAIN, VALIDATION, g) for _ in range(100)])
    counts = torch.bincount(drawn, minlength=len(TRAIN))
    assert stats.chisquare(counts[:70].numpy()).pvalue > 1e-3


def test_without_balance_each_clip_is_shown_once() -> None:
    drawn = draw_clips("none", TRAIN, VALIDATION, generator())
    assert sorted(drawn.tolist()) == list(range(100))
    assert drawn.tolist() != list(range(100))


@pytest.mark.parametrize("balance", ["none", "sampler", "sampler_all"])
def test_draws_follow_the_seed(balance: str) -> None:
    one, same, other = (
        draw_clips(balance, TRAIN, VALIDATION, generator(s))  # type: ignore[arg-type]  # a literal
        for s in (0, 0, 1)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_class_that_no_training_clip_has() -> None:
    """It has no weight to give, and is never drawn."""
    train = torch.tensor([0, 2, 2])
    drawn = draw_clips("sampler", train, torch.tensor([1]), generator())
    assert drawn.shape == (3,)
    assert drawn.max() < 3
