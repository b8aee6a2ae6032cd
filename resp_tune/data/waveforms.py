"""Load a recording as a mono waveform at the sample rate of a front end."""

from __future__ import annotations

import functools
from fractions import Fraction
from pathlib import Path

import torch
import torchaudio

from resp_tune.data.audio_files import read_audio

_MAX_KERNEL = 1_000_000  # filters × their stride, in samples; 44.1 kHz → 4 kHz needs 17 640


def load_waveform(path: str | Path, sample_rate: int) -> torch.Tensor:
    """Return the first channel at `sample_rate` Hz, float32 `[samples]`; may raise `AudioError`.

    Resampled as by `torchaudio.transforms.Resample` with its defaults.
    """
    samples, rate = read_audio(path)
    waveform = torch.from_numpy(samples[0].copy())
    return waveform if rate == sample_rate else resampler(rate, sample_rate)(waveform)


@functools.lru_cache(maxsize=32)
def resampler(source: int, target: int) -> torch.nn.Module:
    """Return torchaudio's resampler from `source` to `target` Hz, whose filters are computed once.

    Rates with a small common divisor (44 101 → 4000) would need gigabytes of filters: they use the
    nearest ratio that does not, which is off by less than one sample in a million.
    """
    ratio = Fraction(target, source)
    if ratio.numerator * ratio.denominator > _MAX_KERNEL:
        ratio = ratio.limit_denominator(max(1, int((_MAX_KERNEL * source / target) ** 0.5)))
    module: torch.nn.Module = torchaudio.transforms.Resample(ratio.denominator, ratio.numerator)
    return module
