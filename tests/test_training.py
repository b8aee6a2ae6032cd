"""The training loop: it learns, repeats to the bit, resumes to the bit, and ends when it must."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from support import toy
from support.toy import fingerprint, toy_config, toy_data, toy_folds, toy_side, trained
from torch import nn

from resp_tune.config import TrialConfig
from resp_tune.features.batches import ClipIndex, eval_params, make_batch
from resp_tune.study.schedulers import Steps
from resp_tune.training.fold_training import SplitTensors, TrainingData, batch_bounds
from resp_tune.training.loop import EpochResult, Training, fit, predict
from resp_tune.training.metrics import all_metrics, majority_accuracy


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Bits are promised for one thread on the CPU; small tensors are also faster so."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("preset_like", ["baseline", "notebook"])
def test_learns_where_the_tones_are(preset_like: str) -> None:
    notebook = {
        "channels": 2,
        "pad": "silence",
        "crop": "start",
        "normalise": "none",
        "balance": "sampler_all",
        "augment_validation": True,
    }
    config = toy_config(epochs=10, **(notebook if preset_like == "notebook" else {}))
    data = toy_data(config)
    results = list(fit(config, [data]))
    assert [r.epoch for r in results] == list(range(1, 11))
    last, labels = results[-1], data.validation.labels.numpy()
    assert majority_accuracy(labels) == 0.5
    assert last.metrics["accuracy"] > 0.9
    assert last.metrics["macro_f1"] > 0.9
    assert last.train_loss < results[0].train_loss / 2
    assert last.val_loss == last.metrics["log_loss"]
    assert all(r.seconds > 0 for r in results)


def test_noise_alone_teaches_nothing() -> None:
    """Labels that have nothing to do with the sounds: no clip of one side leaks to the other."""
    config = toy_config(epochs=6)
    data = toy_data(config)
    chance = torch.Generator().manual_seed(1)
    train, validation = (
        SplitTensors(side.clips, side.labels[torch.randperm(len(side.labels), generator=chance)])
        for side in (data.train, data.validation)
    )
    *_, last = fit(config, [TrainingData(train, validation, data.classes)])
    assert last.metrics["balanced_accuracy"] < 0.6  # chance is a third


def test_same_seed_same_bits_in_another_process() -> None:
    found = {toy.train_alone(), toy.train_alone()}
    assert len(found) == 1
    done = subprocess.run(
        [sys.executable, toy.__file__],
        env={**os.environ, "PYTHONHASHSEED": "1"},  # here it is random
        capture_output=True,
        text=True,
        check=True,
    )
    assert found == {done.stdout}


@pytest.mark.parametrize("values", [{}, {"ema": 0.9, "augment_validation": True}])
def test_folds_in_sequence_give_the_networks_of_folds_together(values: dict[str, Any]) -> None:
    config = toy_config(**values)
    folds = toy_folds(config, 3)
    together, sequence = trained(config, folds), Training(config, folds, order="sequence")
    assert (together.epochs, sequence.epochs) == (3, 9)
    results = [sequence.run_epoch() for _ in range(9)]
    assert sequence.done
    assert [r.epoch for r in results] == list(range(1, 10))
    assert [r.fold for r in results] == [0] * 3 + [1] * 3 + [2] * 3
    for one, other in zip(together.networks(), sequence.networks(), strict=True):
        for a, b in zip(one.parameters(), other.parameters(), strict=True):
            assert torch.equal(a, b)
    last = together.history[-1].metrics
    assert results[-1].metrics == pytest.approx(last)
    assert together.history[-1].fold is None
    for a, b in zip(together.predict_validation(), sequence.predict_validation(), strict=True):
        np.testing.assert_array_equal(a, b)
    # Each fold alone has the score that the means add up from.
    rows, steps = [r.row() for r in results], Steps(3, folds=3)
    alone = [
        all_metrics(fold.validation.labels.numpy(), p, fold.classes)["macro_f1"]
        for fold, p in zip(folds, sequence.predict_validation(), strict=True)
    ]
    assert steps.fold_scores(rows, "macro_f1") == pytest.approx(alone)


@pytest.mark.parametrize("stop", [1, 3, 4, 8])
def test_folds_in_sequence_resume_in_the_middle_of_a_fold(stop: int) -> None:
    config = toy_config()
    folds = toy_folds(config, 3)
    whole, first, second = (Training(config, folds, order="sequence") for _ in range(3))
    for training, epochs in ((whole, 9), (first, stop)):
        for _ in range(epochs):
            training.run_epoch()
    second.load_state(first.state())
    while not second.done:
        second.run_epoch()
    assert fingerprint(second) == fingerprint(whole)


def test_another_seed_is_another_training() -> None:
    data = [toy_data(toy_config())]
    found = {fingerprint(trained(toy_config(seed=s, epochs=1), data)) for s in (0, 1, 2**40)}
    assert len(found) == 3


def test_other_random_numbers_do_not_disturb_it() -> None:
    """Whoever draws from torch's own generator between epochs changes nothing."""
    config, data = toy_config(), [toy_data(toy_config())]
    training = Training(config, data)
    while not training.done:
        torch.rand(3)
        training.run_epoch()
    assert fingerprint(training) == fingerprint(trained(config, data))


@pytest.mark.parametrize("folds", [1, 2])
def test_resumed_after_any_epoch_to_the_same_bits(folds: int) -> None:
    config = toy_config(epochs=4, max_mask_pct=0.3, dropout=0.4, augment_validation=True)
    data = toy_folds(config, folds)
    whole = Training(config, data)
    saved = []
    while not whole.done:
        whole.run_epoch()
        file = io.BytesIO()
        torch.save(whole.state(), file)
        saved.append(file.getvalue())
    for epochs, content in enumerate(saved, 1):
        resumed = Training(config.replace({"seed": config.seed}), data)
        resumed.load_state(torch.load(io.BytesIO(content), weights_only=True))
        assert len(resumed.history) == epochs
        assert resumed.done == (epochs == 4)
        while not resumed.done:
            resumed.run_epoch()
        assert fingerprint(resumed) == fingerprint(whole)
        for one, other in zip(
            resumed.predict_validation(), whole.predict_validation(), strict=True
        ):
            assert np.array_equal(one, other)


def test_learning_rate_is_torchs_one_cycle_over_the_whole_budget() -> None:
    config = toy_config(epochs=5, lr=0.02)
    results = list(fit(config, [toy_data(config)]))
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([weight], lr=0.02)
    steps = 3  # batches of an epoch: 25 clips in 8, 8 and 9
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.02, total_steps=steps * 5)
    used = []
    for _ in range(steps * 5):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert [r.lr for r in results] == used[steps - 1 :: steps]  # of each epoch's last step
    assert 0.0198 < max(used) <= 0.02
    assert results[-1].lr == pytest.approx(0.02 / 25 / 1e4)


class Recorded(nn.Module):
    """A network without batch norm or dropout, so that parts of a batch do not see each other."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16 * 16, 3)
        self.seen: list[int] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(x))
        logits: torch.Tensor = self.layer(x.flatten(1))
        return logits


def one_epoch_of(network: nn.Module, config: TrialConfig, data: TrainingData) -> dict[str, Any]:
    training = Training(config, [data])
    run = training.folds[0]
    run.network = network  # type: ignore[assignment]  # any module that maps clips to logits
    run.optimizer = torch.optim.SGD(network.parameters(), lr=0.1)  # type: ignore[assignment]  # its step shows the gradient
    run.schedule = torch.optim.lr_scheduler.ConstantLR(run.optimizer, 1.0)  # type: ignore[assignment]  # no schedule
    loss = run.train(1)
    return {"loss": loss, **{k: v.clone() for k, v in network.state_dict().items()}}


def test_micro_batches_add_up_to_the_batch() -> None:
    """With batch statistics the parts would differ, since each part has its own; not here."""
    data = toy_data(toy_config())
    torch.manual_seed(0)
    start = Recorded().state_dict()
    found = []
    for micro_batch, parts in (
        (None, [8, 8, 9]),
        (4, [4, 4, 4, 4, 4, 5]),
        (3, [3, 3, 2] * 2 + [3] * 3),
    ):
        network = Recorded()
        network.load_state_dict(start)
        found.append(one_epoch_of(network, toy_config(micro_batch=micro_batch, batch_size=8), data))
        assert network.seen == parts
    for other in found[1:]:
        for name, value in found[0].items():
            torch.testing.assert_close(other[name], value, atol=1e-5, rtol=1e-4)


def test_micro_batches_train_the_real_network() -> None:
    config = toy_config(micro_batch=4, epochs=6)
    *_, last = fit(config, [toy_data(config)])
    assert last.metrics["accuracy"] > 0.8


def test_train_loss_is_the_mean_over_the_items() -> None:
    """Unlike the notebook's mean of batch means, which weighs a small last batch too much."""
    config = toy_config(
        balance="none", n_time_masks=0, n_freq_masks=0, time_shift=0.0, crop="start", batch_size=10
    )
    side = toy_side(config, 36, 0)
    long = side.clips.count >= config.clip_frames  # the others' place in their padding is drawn
    clips = ClipIndex(side.clips.frames, side.clips.first[long], side.clips.count[long])
    side = SplitTensors(clips, side.labels[long])
    assert len(side.labels) % 10 > 1
    network = Recorded()
    run = Training(config, [TrainingData(side, side, toy.CLASSES)]).folds[0]
    run.network = network  # type: ignore[assignment]  # any module that maps clips to logits
    run.optimizer = torch.optim.SGD(network.parameters(), lr=0.0)  # type: ignore[assignment]  # weights stay
    run.schedule = torch.optim.lr_scheduler.ConstantLR(run.optimizer, 1.0)  # type: ignore[assignment]  # no schedule
    loss = run.train(1)
    with torch.inference_mode():
        logits = network(make_batch(clips, eval_params(clips.count, config), config))
    assert loss == pytest.approx(float(nn.functional.cross_entropy(logits, side.labels)), rel=1e-5)


@pytest.mark.parametrize(
    ("items", "size", "bounds"),
    [
        (1, 8, [(0, 1)]),
        (7, 8, [(0, 7)]),
        (8, 8, [(0, 8)]),
        (9, 8, [(0, 9)]),
        (10, 8, [(0, 10)]),
        (11, 8, [(0, 8), (8, 11)]),
        (17, 8, [(0, 8), (8, 17)]),
        (24, 8, [(0, 8), (8, 16), (16, 24)]),
        (736, 128, [(i * 128, min((i + 1) * 128, 736)) for i in range(6)]),
    ],
)
def test_batch_bounds(items: int, size: int, bounds: list[tuple[int, int]]) -> None:
    assert batch_bounds(items, size) == bounds


def test_batch_bounds_cover_everything_once() -> None:
    for items in range(1, 60):
        for size in range(2, 20):
            bounds = batch_bounds(items, size)
            assert [i for start, stop in bounds for i in range(start, stop)] == list(range(items))
            assert all(stop - start >= 2 for start, stop in bounds) or items == 1
            assert all(stop - start == size for start, stop in bounds[:-1])


def test_two_folds_give_the_mean_of_their_figures() -> None:
    config = toy_config(epochs=2)
    folds = toy_folds(config, 2)
    together = trained(config, folds)
    rows = []
    for n, (data, probabilities) in enumerate(
        zip(folds, together.predict_validation(), strict=True)
    ):
        rows.append(all_metrics(data.validation.labels.numpy(), probabilities, data.classes))
        network = together.networks()[n]
        plain = eval_params(data.validation.clips.count, config)
        np.testing.assert_array_equal(
            probabilities, predict(network, data.validation.clips, plain, config)
        )
    last = together.history[-1]
    for name, value in last.metrics.items():
        assert value == pytest.approx((rows[0][name] + rows[1][name]) / 2)
    # The first fold trains as if it were alone: folds do not draw from each other's randomness.
    alone = trained(config, folds[:1])
    pairs = zip(
        alone.networks()[0].state_dict().values(),
        together.networks()[0].state_dict().values(),
        strict=True,
    )
    assert all(torch.equal(one, other) for one, other in pairs)


def test_prediction_is_the_mean_over_a_clips_crops() -> None:
    config = toy_config(epochs=1)
    training = trained(config, [toy_data(config)])
    network = training.networks()[0]
    side = toy_side(config, 12, 7)
    draws = eval_params(side.clips.count, config)
    assert len(draws) > 12
    with torch.inference_mode():
        items = network(make_batch(side.clips, draws, config)).softmax(1)
    for n, mean in enumerate(predict(network, side.clips, draws, config)):
        np.testing.assert_allclose(mean, items[draws.clip == n].mean(0), atol=1e-6)
        assert mean.sum() == pytest.approx(1, abs=1e-5)


def test_validation_is_augmented_only_where_the_preset_says_so() -> None:
    for augmented in (False, True):
        config = toy_config(epochs=1, augment_validation=augmented, max_mask_pct=0.5)
        training = trained(config, [toy_data(config)])
        first = training.predict_validation()[0]
        np.testing.assert_array_equal(first, training.predict_validation()[0])
        training.history.append(training.history[-1])  # as if another epoch had passed
        assert np.array_equal(first, training.predict_validation()[0]) != augmented


def test_an_epoch_result_survives_as_a_row() -> None:
    result = EpochResult(3, 0.5, 0.7, {"macro_f1": 0.4, "log_loss": 0.7}, 1e-3, 2.5)
    assert EpochResult.from_row(result.row()) == result
    assert set(result.row()) == {
        "epoch",
        "train_loss",
        "val_loss",
        "val_macro_f1",
        "val_log_loss",
        "lr",
        "seconds",
    }


def test_bfloat16_learns_too() -> None:
    config = toy_config(precision="bfloat16", epochs=6)
    *_, last = fit(config, [toy_data(config)])
    assert last.metrics["accuracy"] > 0.8
