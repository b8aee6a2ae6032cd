"""Draws and batches: distributions against torchaudio's, batches against a loop of ten lines."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
import torchaudio
from scipy import stats
from support.toy import toy_config, toy_frames

from resp_tune.config import TrialConfig, preset
from resp_tune.features.batches import (
    AugmentParams,
    ClipIndex,
    augment_params,
    eval_params,
    make_batch,
)
from resp_tune.features.logmel import SILENCE_DB, Frames, join_frames, log_mels

# Shorter, equal and longer than the toy clips of 16 frames; one is a part of its recording.
LENGTHS = (1, 5, 16, 17, 40, 70)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_clips(config: TrialConfig) -> ClipIndex:
    mels = [-90 + 80 * torch.rand(n, config.n_mels, generator=generator(n)) for n in (*LENGTHS, 30)]
    frames = join_frames(mels)
    first, count = frames.first.clone(), frames.count.clone()
    first[-1], count[-1] = first[-1] + 4, 21
    return ClipIndex(frames, first, count)


def plainly(clips: ClipIndex, draws: AugmentParams, i: int, config: TrialConfig) -> torch.Tensor:
    """Item `i`, `[frames, n_mels]`, one operation after the other."""
    n, length = int(draws.clip[i]), config.clip_frames
    x = clips.frames.values[clips.first[n] :][: clips.count[n]].float()
    x = x[draws.crop[i] :][:length]
    pad = int(draws.pad[i])
    if config.pad == "silence":
        x = torch.nn.functional.pad(x, (0, 0, pad, length - pad - len(x)), value=SILENCE_DB)
    else:
        x = x.repeat(2 + length // len(x), 1)[(-pad) % len(x) :][:length]
    x = x.roll(int(draws.shift[i]), 0)
    x = x.clamp(min=x.max().item() - config.top_db)
    if config.normalise == "clip":
        x = (x - x.mean()) / x.std().clamp(min=1e-3)
    if config.normalise == "recording":
        # The last clip is a part of its recording, the others are all of theirs.
        whole = clips.frames.values[clips.frames.first[n] :][: clips.frames.count[n]].float()
        whole = whole.clamp(min=whole.max().item() - config.top_db)
        x = (x - whole.mean()) / whole.std()
    fill = x.mean()
    masked = x.clone()
    for start, width in zip(draws.freq_start[i], draws.freq_width[i], strict=True):
        masked[:, start : start + width] = fill
    for start, width in zip(draws.time_start[i], draws.time_width[i], strict=True):
        masked[start : start + width] = fill
    return masked


@pytest.mark.parametrize("normalise", ["none", "clip", "recording"])
@pytest.mark.parametrize("crop", ["start", "random"])
@pytest.mark.parametrize("pad", ["silence", "repeat"])
def test_a_batch_is_a_plain_loop(pad: str, crop: str, normalise: str) -> None:
    config = toy_config(
        pad=pad, crop=crop, normalise=normalise, top_db=50.0, max_mask_pct=0.5, n_freq_masks=2
    )
    clips = random_clips(config).with_level(config)
    items = torch.arange(200) % len(clips.count)
    for draws in (
        augment_params(items, clips.count, config, generator()),
        eval_params(clips.count, config),
    ):
        batch = make_batch(clips, draws, config)
        assert batch.shape == (len(draws), 1, 16, 16)
        assert batch.dtype == torch.float32
        expected = torch.stack([plainly(clips, draws, i, config) for i in range(len(draws))])
        torch.testing.assert_close(batch[:, 0], expected, atol=2e-4, rtol=0)
        assert torch.equal(batch, make_batch(clips, draws, config))
        single = make_batch(clips, draws[0:1], config)
        torch.testing.assert_close(single, batch[:1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("normalise", ["none", "clip", "recording"])
def test_a_batch_for_bfloat16_is_the_same_one_rounded(normalise: str) -> None:
    config = toy_config(normalise=normalise)
    clips = random_clips(config).with_level(config)
    draws = augment_params(torch.arange(600) % 7, clips.count, config, generator())
    low = make_batch(clips, draws, config.replace({"precision": "bfloat16"}))
    assert torch.equal(low, make_batch(clips, draws, config).bfloat16())


@pytest.mark.parametrize("first", [{"normalise": "band"}, {"mixup": 0.2}])
def test_what_comes_before_the_network_is_computed_in_float32(first: dict[str, Any]) -> None:
    config = toy_config(**first).replace({"precision": "bfloat16"})
    clips = random_clips(config).with_level(config)
    batch = make_batch(clips, eval_params(clips.count, config), config)
    assert batch.dtype == torch.float32


def test_a_recordings_level_must_be_known() -> None:
    config = toy_config(normalise="recording")
    clips = random_clips(config)
    with pytest.raises(ValueError, match="with_level"):
        make_batch(clips, eval_params(clips.count, config), config)
    assert random_clips(toy_config()).with_level(toy_config()).level is None


@pytest.mark.parametrize("normalise", ["none", "clip", "recording"])
def test_the_frames_are_not_changed(normalise: str) -> None:
    config = toy_config(normalise=normalise)
    clips = random_clips(config).with_level(config)
    before = clips.frames.values.clone()
    make_batch(clips, augment_params(torch.arange(7), clips.count, config, generator()), config)
    assert torch.equal(clips.frames.values, before)


def test_a_constant_clip_is_finite() -> None:
    config = toy_config()
    frames = join_frames([torch.full((30, 16), SILENCE_DB)])
    clips = ClipIndex(frames, frames.first, frames.count)
    assert (make_batch(clips, eval_params(clips.count, config), config) == 0).all()


def test_draws_follow_the_seed() -> None:
    config = toy_config()
    count = torch.tensor(LENGTHS)
    one, same, other = (
        augment_params(torch.arange(6), count, config, generator(s)) for s in (3, 3, 4)
    )
    assert all(torch.equal(vars(one)[name], vars(same)[name]) for name in vars(one))
    assert not torch.equal(one.shift, other.shift)


def is_uniform(values: torch.Tensor, low: int, high: int) -> bool:
    """Chi-square over every whole number in low..high, each of which must occur."""
    assert (int(values.min()), int(values.max())) == (low, high)
    counts = torch.bincount(values - low, minlength=high - low + 1).numpy()
    return float(stats.chisquare(counts).pvalue) > 1e-3


def test_crops_pads_and_shifts_are_uniform() -> None:
    config = toy_config(time_shift=0.5)
    count = torch.tensor([9, 16, 21])
    clip = torch.arange(30_000) % 3
    draws = augment_params(clip, count, config, generator())
    assert is_uniform(draws.pad[clip == 0], 0, 7)
    assert (draws.pad[clip != 0] == 0).all()
    assert is_uniform(draws.crop[clip == 2], 0, 5)
    assert (draws.crop[clip != 2] == 0).all()
    assert is_uniform(draws.shift, 0, 7)  # int(U(0, 1) · 0.5 · 16)
    start = augment_params(clip, count, toy_config(crop="start"), generator())
    assert (start.crop == 0).all()


@pytest.mark.parametrize(
    ("axis", "size", "fraction"),
    [("freq", 64, 0.1), ("freq", 48, 0.3), ("time", 1719, 0.1), ("time", 1719, 1.0)],
)
def test_masks_follow_torchaudios(axis: str, size: int, fraction: float) -> None:
    """Widths and starts of 10 000 masks against those of the notebook's transform."""
    many = 10_000
    config = preset("notebook").replace({"max_mask_pct": fraction, "n_time_masks": 1})
    config = config.replace({"n_mels": size} if axis == "freq" else {})
    clip, frames = torch.zeros(many, dtype=torch.int64), torch.tensor([1719])
    drawn = augment_params(clip, frames, config, generator())
    width = getattr(drawn, f"{axis}_width").flatten()
    start = getattr(drawn, f"{axis}_start").flatten()
    torch.manual_seed(1)
    masking = torchaudio.transforms.FrequencyMasking(fraction * size, iid_masks=True)
    masked = masking(torch.ones(many, 1, size, 1), 0.0)[:, 0, :, 0] == 0
    their_width, their_start = masked.sum(1), masked.int().argmax(1)

    widest = math.ceil(fraction * size) - 1
    assert int(width.min()) == 0
    assert int(width.max()) <= widest
    assert (start + width <= size).all()
    if (size, fraction) == (64, 0.1):
        assert set(width.tolist()) == set(their_width.tolist()) == set(range(7))  # 0 to 6 bins
    some = width > 0  # a mask of no width shows no start
    assert stats.ks_2samp(width, their_width).pvalue > 1e-3
    assert stats.ks_2samp(start[some], their_start[their_width > 0]).pvalue > 1e-3
    # A whole width w comes from w..w + 1 of the continuous one, the widest from what is left.
    edges = np.append(np.arange(widest + 1), fraction * size)
    counts = torch.bincount(width, minlength=widest + 1).numpy()
    assert stats.chisquare(counts, np.diff(edges) / (fraction * size) * many).pvalue > 1e-3


def test_numbers_of_masks() -> None:
    config = toy_config(n_freq_masks=3, n_time_masks=0)
    draws = augment_params(torch.arange(6), torch.tensor(LENGTHS), config, generator())
    assert draws.freq_width.shape == draws.freq_start.shape == (6, 3)
    assert draws.time_width.shape == draws.time_start.shape == (6, 0)


@pytest.mark.parametrize("crop", ["start", "random"])
def test_evaluation_sees_every_frame_and_nothing_random(crop: str) -> None:
    config = toy_config(crop=crop)
    draws = eval_params(torch.tensor(LENGTHS), config)
    assert (draws.shift == 0).all()
    assert draws.freq_width.numel() == draws.time_width.numel() == 0
    for n, length in enumerate(LENGTHS):
        crops = draws.crop[draws.clip == n].tolist()
        if crop == "start" or length <= 16:
            assert crops == [0]
        else:
            assert (crops[0], crops[-1]) == (0, length - 16)
            assert max(b - a for a, b in itertools.pairwise(crops)) <= 16
            assert len(crops) == math.ceil(length / 16)
    assert draws.pad[draws.clip == 1].tolist() == [5]  # 5 frames stand in the middle of 16


def notebooks_power(waveform: torch.Tensor, pad: int, roll: int) -> torch.Tensor:
    """Steps 4 to 6 of the notebook, in samples, up to the decibels: `[2, 64, 1719]`."""
    both = waveform.repeat(2, 1)[:, :880_000]
    both = torch.nn.functional.pad(both, (pad, 880_000 - pad - both.shape[1])).roll(roll, 1)
    mel = torchaudio.transforms.MelSpectrogram(44_100, n_fft=1024, hop_length=512, n_mels=64)
    power: torch.Tensor = mel(both)
    return power


@pytest.mark.parametrize("seconds", [23.0, 12.0])
def test_the_notebooks_batch(seconds: float) -> None:
    """Away from seam and edges a batch of the preset is the notebook's own pipeline.

    880 000 samples are not a whole number of hops: what is rolled over the end comes from a
    roll that is 128 samples (3 ms) shorter.
    """
    config = preset("notebook")
    samples = int(seconds * config.sample_rate) // 512 * 512
    # Loudest in the middle: `top_db` counts from the loudest bin, which must not be at a seam.
    waveform = torch.hann_window(samples) * torch.randn(samples, generator=generator(2))
    frames = join_frames(log_mels(waveform, [config.front_end]))
    clips = ClipIndex(frames, frames.first, frames.count)
    draws = augment_params(torch.zeros(4, dtype=torch.int64), frames.count, config, generator(1))
    batch = make_batch(clips, draws, config)
    assert batch.shape == (4, 1, 1719, 64)
    assert bool((draws.pad > 0).all()) == (seconds < 20)
    for i in range(4):
        pad, shift = int(draws.pad[i]), int(draws.shift[i])
        ahead = notebooks_power(waveform, pad * 512, shift * 512)
        wrapped = notebooks_power(waveform, pad * 512, shift * 512 - 128)
        power = torch.cat([wrapped[..., :shift], ahead[..., shift:]], dim=2)
        expected = torchaudio.transforms.AmplitudeToDB(top_db=80)(power)
        assert torch.equal(expected[0], expected[1])  # the two channels are one
        fill = expected.mean()
        for start, width in zip(draws.freq_start[i], draws.freq_width[i], strict=True):
            expected[:, start : start + width] = fill
        for start, width in zip(draws.time_start[i], draws.time_width[i], strict=True):
            expected[:, :, start : start + width] = fill
        difference = (batch[i, 0].T - expected[0]).abs().amax(0)
        ends = (0, 1718, shift - 1, shift, shift + pad, shift + pad + len(frames.values) - 2)
        near = {(end + step) % 1719 for end in ends for step in (-1, 0, 1)}
        assert difference[[t for t in range(1719) if t not in near]].max() <= 0.1


def test_a_clip_of_a_frame_or_of_one_recording() -> None:
    """The smallest there is: one frame, one recording."""
    config = toy_config(pad="repeat", normalise="none")
    frames: Frames = toy_frames(config, torch.tensor([0]), 0)
    clips = ClipIndex(frames, frames.first, torch.tensor([1]))
    batch = make_batch(clips, eval_params(clips.count, config), config)
    clamped: Any = frames.values[0].float().clamp(min=float(frames.values[0].max()) - config.top_db)
    assert torch.equal(batch[0, 0], clamped.expand(16, 16))
