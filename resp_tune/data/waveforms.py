"""Load a recording as a mono waveform at the sample rate of a front end.

Resampling must not show which stethoscope was used: those that record at the target rate are not
filtered, all others are. `kaiser` therefore keeps everything up to 0.95 of half the lower rate
within 0.02 dB and suppresses aliases by 100 dB; a mel bank that ends there sees no difference.
`hann` is torchaudio's default (width 6, rolloff 0.99) and loses 4 dB at 0.95 of half the rate.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
import torchaudio

from resp_tune.common.text import plural
from resp_tune.config import AnyFrontEnd, FrontEnd, Resampling
from resp_tune.data.dataset import Recording
from resp_tune.data.sounds.sound import Sound, read_sound

FLAT_TO = 0.95  # of half the lower rate, which `kaiser` keeps
_KAISER = {
    "resampling_method": "sinc_interp_kaiser", "lowpass_filter_width": 128, "rolloff": 0.97,
    "beta": 10.0,
}  # fmt: skip
_MAX_KERNEL = 1_000_000  # filters × their stride, in samples; 44.1 kHz → 4 kHz needs 17 640


def load_waveform(
    path: str | Path, sample_rate: int, resampling: Resampling = "kaiser"
) -> torch.Tensor:
    """Return the sound of a file at `sample_rate` Hz, float32 `[samples]`; may raise `AudioError`.

    `read_sound` says which channel that is.
    """
    return resample(read_sound(path), sample_rate, resampling)


def resample(sound: Sound, sample_rate: int, resampling: Resampling) -> torch.Tensor:
    """Return the samples of `sound` at `sample_rate` Hz, float32 `[samples]`."""
    waveform, rate = torch.from_numpy(sound.samples), sound.sample_rate
    return waveform if rate == sample_rate else resampler(rate, sample_rate, resampling)(waveform)


def describe_uneven_bands(
    recordings: Sequence[Recording], front_ends: Sequence[AnyFrontEnd]
) -> str | None:
    """Return a line if some front end has bands that only a part of the recordings can fill.

    Recordings made at the front end's rate hold everything up to half of it, resampled ones up to
    `FLAT_TO` of that, and those of a lower rate less.
    """
    made_at = Counter(r.sample_rate for r in recordings)
    lowest = min(made_at)
    worst: tuple[float, float] | None = None  # the bank's end, and where all are alike
    for front_end in front_ends:
        if isinstance(front_end, FrontEnd):
            rate, f_max = front_end.sample_rate, front_end.f_max
        else:  # an encoder, of whatever rate, may hear all of it
            rate = max(made_at)
            f_max = rate / 2 if front_end.f_max is None else front_end.f_max
        alike = FLAT_TO * min(lowest, rate) / 2
        same = len(made_at) == 1 or lowest > rate
        if not same and f_max > alike:
            worst = max(worst or (0.0, 0.0), (f_max, alike))
    if worst is None:
        return None
    end, alike = worst
    mels = all(isinstance(front_end, FrontEnd) for front_end in front_ends)
    bands = "mel bands" if mels else "frequencies"
    return (
        f"{made_at[lowest]} of {plural(len(recordings), 'recording')} made at {lowest} Hz, the "
        f"others at up to {max(made_at)} Hz: {bands} above {alike:g} Hz (here up to {end:g} Hz) "
        f"show which, and so the stethoscope; end them with f_max: {alike:g}"
    )


@functools.lru_cache(maxsize=32)
def resampler(source: int, target: int, resampling: Resampling) -> torch.nn.Module:
    """Return torchaudio's resampler from `source` to `target` Hz, whose filters are computed once.

    Rates with a small common divisor (44 101 → 4000) would need gigabytes of filters: they use the
    nearest ratio that does not, which is off by less than one sample in a million.
    """
    ratio = Fraction(target, source)
    if ratio.numerator * ratio.denominator > _MAX_KERNEL:
        ratio = ratio.limit_denominator(max(1, int((_MAX_KERNEL * source / target) ** 0.5)))
    options: dict[str, Any] = _KAISER if resampling == "kaiser" else {}
    module: torch.nn.Module = torchaudio.transforms.Resample(
        ratio.denominator, ratio.numerator, **options
    )
    return module
