"""A recording as a mono waveform at the rate that a front end asks for."""

from __future__ import annotations

import functools
from fractions import Fraction
from pathlib import Path

import torch
import torchaudio

from resp_tune.data.audio_files import read_audio

_KERNEL_SIZE = 1_000_000  # filters × their stride, in samples; 44.1 kHz → 4 kHz needs 17 640


def load_waveform(path: str | Path, sample_rate: int) -> torch.Tensor:
    """The first channel at `sample_rate` Hz, float32 `[samples]`; raises `AudioError`.

    Resampled as `torchaudio.transforms.Resample` does by default.
    """
    samples, rate = read_audio(path)
    waveform = torch.from_numpy(samples[0].copy())
    return waveform if rate == sample_rate else resampler(rate, sample_rate)(waveform)


@functools.lru_cache(maxsize=32)
def resampler(source: int, target: int) -> torch.nn.Module:
    """The resampler of torchaudio from `source` to `target` Hz, its filters made once.

    Rates with hardly a common divisor (44 101 → 4000) would need gigabytes of filters: the ratio is
    then the nearest one that does not, off by less than one sample in a million.
    """
    ratio = Fraction(target, source)
    if ratio.numerator * ratio.denominator > _KERNEL_SIZE:
        ratio = ratio.limit_denominator(max(1, int((_KERNEL_SIZE * source / target) ** 0.5)))
    module: torch.nn.Module = torchaudio.transforms.Resample(ratio.denominator, ratio.numerator)
    return module
