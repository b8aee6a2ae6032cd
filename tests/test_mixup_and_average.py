"""Mixup and averaged weights, each against its definition."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy import stats
from support.toy import fingerprint, toy_config, toy_data, trained
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from resp_tune.training.loop import Training
from resp_tune.training.regularization import ModelAverage, blend, blended_loss, draw_weights


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_weights_are_beta_folded_to_the_greater_half(alpha: float) -> None:
    weight = draw_weights(20_000, alpha, seed=1)
    assert weight is not None
    assert 0.5 <= weight.min() <= weight.max() <= 1
    drawn = stats.beta(alpha, alpha).rvs(20_000, random_state=2)
    folded = [max(w, 1 - w) for w in drawn]
    bins = np.linspace(0.5, 1, 11)
    counts = [np.histogram(values, bins)[0] for values in (weight.numpy(), folded)]
    assert stats.chi2_contingency(counts).pvalue > 1e-3
    again = draw_weights(20_000, alpha, seed=1)
    assert again is not None
    assert torch.equal(weight, again)
    assert draw_weights(10, 0.0, seed=1) is None


def test_a_blend_is_a_plain_loop() -> None:
    x = torch.randn(5, 1, 4, 3)
    weight = torch.tensor([0.5, 0.6, 0.7, 0.8, 1.0])
    blended = blend(x, weight)
    for i in range(5):
        torch.testing.assert_close(blended[i], weight[i] * x[i] + (1 - weight[i]) * x[i - 1])


def test_the_blended_loss_is_that_of_the_blended_label() -> None:
    given, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 2, 1, 0])
    weight = torch.rand(6)
    one_hot = nn.functional.one_hot(labels, 3).float()
    target = weight[:, None] * one_hot + (1 - weight[:, None]) * one_hot.roll(1, 0)
    own = cross_entropy(given, labels, reduction="none")
    other = cross_entropy(given, labels.roll(1), reduction="none")
    found = blended_loss(own, other, weight)
    torch.testing.assert_close(found, cross_entropy(given, target, reduction="none"))


def test_average_is_torchs_own_after_the_first_steps() -> None:
    """Torch keeps the first weights as they are; ours starts with a smaller decay instead."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    ours = ModelAverage(network, 0.9)
    for step in range(1, 200):
        _train_a_step(network)
        ours.update(step)
        if step == 100:
            state = copy.deepcopy(ours.network)
            rule = get_ema_multi_avg_fn(0.9)  # type: ignore[no-untyped-call]  # torch's own
            theirs = AveragedModel(state, multi_avg_fn=rule, use_buffers=True)
            theirs.n_averaged.fill_(1)
        if step > 100:
            theirs.update_parameters(network)
    mine, its = ours.network.state_dict(), theirs.module.state_dict()
    assert mine.pop("1.num_batches_tracked") == 199  # a count; torch averages it
    for name in mine:
        torch.testing.assert_close(mine[name], its[name], msg=name)
    assert not torch.equal(mine["0.weight"], network.state_dict()["0.weight"])


def _train_a_step(network: nn.Module) -> None:
    network(torch.randn(8, 3))
    with torch.no_grad():
        for value in network.parameters():
            value.add_(torch.randn_like(value))


def test_early_steps_forget_the_random_start() -> None:
    network = nn.Linear(2, 2)
    average = ModelAverage(network, 0.999)
    with torch.no_grad():
        network.weight.fill_(1.0)
    for step in range(1, 31):
        average.update(step)
    assert (average.network.weight - 1).abs().max() < 0.02  # by 0.999 alone .97 would be left


def test_what_is_scored_and_kept_is_the_average() -> None:
    config = toy_config(ema=0.8, epochs=3)
    plain, averaged = (trained(c, [toy_data(c)]) for c in (config.replace({"ema": 0.0}), config))
    state = averaged.state()["folds"][0]
    for name, value in plain.state()["folds"][0]["network"].items():
        assert torch.equal(state["trained"][name], value), name  # training itself is not touched
    kept = averaged.networks()[0].state_dict()
    assert all(torch.equal(kept[name], state["network"][name]) for name in kept)
    assert not torch.equal(kept["head.2.2.weight"], state["trained"]["head.2.2.weight"])
    assert averaged.history[-1].metrics != plain.history[-1].metrics


@pytest.mark.parametrize(
    "values",
    [
        {"ema": 0.9},
        pytest.param({"mixup": 0.4, "label_smoothing": 0.1}, marks=pytest.mark.thorough),
        {"mixup": 0.4, "micro_batch": 3},
        {"normalise": "band"},
        pytest.param({"normalise": "recording"}, marks=pytest.mark.thorough),
        {"normalise": "pcen"},
        pytest.param({"balance": "focal"}, marks=pytest.mark.thorough),
        {"balance": "logit_adjustment"},
        pytest.param({"balance": "effective_number"}, marks=pytest.mark.thorough),
        pytest.param({"depth": 3}, marks=pytest.mark.thorough),
        {"depth": 6},
    ],
)
def test_every_dimension_learns_and_resumes_to_the_same_bits(values: dict[str, object]) -> None:
    torch.set_num_threads(1)
    config = toy_config(epochs=10, **values)
    data = [toy_data(config)]
    whole = trained(config, data)
    steady = values == {"normalise": "pcen"}  # the toy's tones, which PCEN takes for the device's
    assert steady or whole.history[-1].metrics["balanced_accuracy"] > 0.8, values
    half = Training(config, data)
    for _ in range(5):
        half.run_epoch()
    resumed = Training(config, data)
    resumed.load_state(half.state())
    while not resumed.done:
        resumed.run_epoch()
    assert fingerprint(resumed) == fingerprint(whole)
