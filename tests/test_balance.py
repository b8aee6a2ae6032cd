"""Which clips an epoch shows, against torch's own sampler."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats
from support.features import feature_folds, head_config
from torch.utils.data import WeightedRandomSampler

from resp_tune.training.balance import draw_clips, patient_weights, sampling_weights
from resp_tune.training.heads.head_fold import MlpFold

TRAIN = torch.tensor([0] * 70 + [1] * 20 + [2] * 8 + [3] * 2)
VALIDATION = torch.tensor([0] * 5 + [1] * 10 + [2] * 2 + [3] * 8)


def draw(balance: str, draws: torch.Generator, train: torch.Tensor = TRAIN) -> torch.Tensor:
    """Draw the clips of one epoch."""
    weights = sampling_weights(balance, train, VALIDATION)  # type: ignore[arg-type]  # a literal
    return draw_clips(len(train), weights, draws)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def frequencies(draw: list[torch.Tensor]) -> torch.Tensor:
    return torch.bincount(TRAIN[torch.cat(draw)], minlength=4)


@pytest.mark.parametrize("balance", ["sampler", "sampler_all"])
def test_classes_come_as_often_as_from_weighted_random_sampler(balance: str) -> None:
    g = generator()
    ours = frequencies([draw(balance, g) for _ in range(100)])
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
    drawn = torch.cat([draw("sampler", g) for _ in range(100)])
    counts = torch.bincount(drawn, minlength=len(TRAIN))
    assert stats.chisquare(counts[:70].numpy()).pvalue > 1e-3


def test_without_balance_each_clip_is_shown_once() -> None:
    drawn = draw("none", generator())
    assert sorted(drawn.tolist()) == list(range(100))
    assert drawn.tolist() != list(range(100))


@pytest.mark.parametrize("balance", ["none", "sampler", "sampler_all", "patient_sampler"])
def test_draws_follow_the_seed(balance: str) -> None:
    one, same, other = (draw(balance, generator(s)) for s in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_a_class_that_no_training_clip_has() -> None:
    """It has no weight to give, and is never drawn."""
    train = torch.tensor([0, 2, 2])
    drawn = draw("sampler", generator(), train)
    assert drawn.shape == (3,)
    assert drawn.max() < 3


def test_a_patient_sampler_shows_classes_alike_and_patients_of_a_class_alike() -> None:
    patients = np.arange(100) // 10 * (np.arange(100) >= 50)  # one has half of the clips
    weights = sampling_weights("patient_sampler", TRAIN, VALIDATION, patients)
    assert weights is not None
    torch.testing.assert_close(weights, patient_weights(TRAIN, patients))
    g = generator()
    drawn = torch.cat([draw_clips(100, weights, g) for _ in range(200)])
    pairs, of_clip = np.unique(np.stack([TRAIN.numpy(), patients]), axis=1, return_inverse=True)
    in_class = np.bincount(pairs[0])
    expected = 1 / len(in_class) / in_class[pairs[0]]  # the share of a patient in a class
    seen = np.bincount(of_clip[drawn.numpy()], minlength=pairs.shape[1])
    assert stats.chisquare(seen, expected * len(drawn)).pvalue > 1e-3


def test_training_draws_by_the_patients_of_the_training_split() -> None:
    data = feature_folds()[0]
    config = head_config(head="mlp", balance="patient_sampler")
    fold = MlpFold(config, data, torch.device("cpu"), 0)
    weights = patient_weights(data.train.labels, data.train.groups["patient"])
    assert fold.rates is not None
    torch.testing.assert_close(fold.rates, weights)
    assert len(weights.unique()) > len(data.classes)
