"""Turn the bytes of a recording into a mono waveform at the sample rate of a front end.

First its sound is found: which channel, at which scale, and whether there is any. Then it is
resampled, which must not show which stethoscope was used: those that record at the target rate are
not filtered, all others are. `kaiser` therefore keeps everything up to 0.95 of half the lower rate
within 0.02 dB and suppresses aliases by 100 dB; a mel bank that ends there sees no difference.
`hann` is torchaudio's default (width 6, rolloff 0.99) and loses 4 dB at 0.95 of half the rate.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from resp_tune.common.text import plural
from resp_tune.config import AnyFrontEnd, FrontEnd, Resampling
from resp_tune.data.sounds.audio_files import (
    MIN_SECONDS,
    Audio,
    AudioError,
    Remark,
    decode,
    read_content,
)

if TYPE_CHECKING:  # reading a data set should not wait for torch
    import torch

    from resp_tune.data.dataset import Recording


Samples = npt.NDArray[np.float32]

MIN_LEVEL, MAX_OPEN = 0.01, 2e-4  # an input to which nothing is connected: 40 dB below another
MIN_SOUNDING = 0.05  # share of the time in which a channel has sound, below which it is silent
_BLOCK_SECONDS = 0.1
_MANY = 5  # blocks, of which a single one with sound holds a click
_MAX_LEVELS = 4  # distinct values within a block of dithered silence
_MIN_RANGE = 1e-6  # of the values within a block with sound; full scale is 2
_CLIPPED_SAMPLES, _CLIPPED_BLOCKS = 0.2, 0.8  # in ICBHI 2017 at most 0.013 and 0.13
_MIN_CLIPPED_RANGE = 32 / 32768  # below it, the extremes of quiet noise recur by themselves
_FULL_SCALES = (2.0**15, 2.0**23, 2.0**31)  # of integer samples that were stored as floats
_MIN_INTEGER_PEAK = 64.0  # larger than in any float recording that was scaled as one
FLAT_TO = 0.95  # of half the lower rate, which `kaiser` keeps
_KAISER = {
    "resampling_method": "sinc_interp_kaiser", "lowpass_filter_width": 128, "rolloff": 0.97,
    "beta": 10.0,
}  # fmt: skip
_MAX_KERNEL = 1_000_000  # filters × their stride, in samples; 44.1 kHz → 4 kHz needs 17 640


@dataclass(frozen=True)
class Sound:
    """The samples of one channel, float32 `[samples]`; Hz; and remarks for the user.

    `channel` counts from 0; `channels` is the number of channels in the file.
    """

    samples: Samples
    sample_rate: int
    channel: int
    channels: int
    remarks: tuple[Remark, ...]


def read_sound(path: str | Path) -> Sound:
    """Return the sound of a file; raise `AudioError` if it cannot be read, is silent or clipped."""
    return find_sound(path, read_content(path))


def find_sound(path: str | Path, content: bytes) -> Sound:
    """Return the sound in the content of the file `path`, which is only named in errors.

    The first channel is used, unless it is silent or clipped throughout and another is not, it is
    silent for at least a tenth of the time in which another has sound, or it holds the noise of an
    input to which nothing is connected: 74 dB below full scale, 40 dB below another. Floats with
    the values of 16, 24 or 32 bit integers are scaled to −1…1.
    Raises `AudioError` if it is shorter than 0.1 s, or no channel has sound that could carry a
    label.
    """
    audio = decode(path, content)
    seconds = audio.samples.shape[1] / audio.sample_rate
    if seconds < MIN_SECONDS:
        raise AudioError(path, f"is {seconds:.3g} s long; at least {MIN_SECONDS:g} s")
    samples, remarks = _scaled(path, audio)
    channels = [_Channel.measure(one, audio) for one in samples]
    chosen = _choose(channels)
    if (reason := channels[chosen].defect) is not None:
        several = f" in each of its {len(channels)} channels" if len(channels) > 1 else ""
        raise AudioError(path, f"{reason}{several}")
    if chosen:
        first = channels[0].describe(channels[chosen])
        remarks.append(Remark("channel", f"channel {chosen + 1}; channel 1 {first}"))
    one = np.ascontiguousarray(samples[chosen])
    return Sound(one, audio.sample_rate, chosen, len(channels), (*audio.remarks, *remarks))


@dataclass(frozen=True)
class _Channel:
    """The share of 0.1 s blocks in which a channel has sound, and why it cannot be used.

    `level` is the standard deviation of its samples.
    """

    sounding: float
    level: float
    defect: str | None

    def describe(self, better: _Channel) -> str:
        """Return why another channel is used instead."""
        if self.defect is None and self.is_open(better.level):
            return f"is {20 * math.log10(better.level / self.level):.0f} dB below it"
        return self.defect or f"is silent for {1 - self.sounding:.0%} of its length"

    def is_open(self, loudest: float) -> bool:
        """Tell whether it holds the noise of an input to which nothing is connected."""
        return self.level < min(MIN_LEVEL * loudest, MAX_OPEN)

    @classmethod
    def measure(cls, samples: Samples, audio: Audio) -> _Channel:
        length = min(len(samples), max(16, round(_BLOCK_SECONDS * audio.sample_rate)))
        blocks = samples[: len(samples) // length * length].reshape(-1, length)
        lowest, highest = blocks.min(axis=1), blocks.max(axis=1)
        has_sound = _have_sound(blocks, highest - lowest, audio.subtype)
        sounding, alone = float(has_sound.mean()), has_sound.sum() <= 1 and len(blocks) >= _MANY
        low, high, level = float(lowest.min()), float(highest.max()), float(blocks.std())
        if low == high:
            return cls(0.0, 0.0, "is silent: all its samples have one value")
        if sounding < MIN_SOUNDING or alone:
            seconds = len(samples) / audio.sample_rate
            heard = f"{sounding * seconds:.2g} of its {seconds:.3g} s have sound"
            return cls(sounding, level, f"is silent: {heard}")
        if _is_clipped(blocks, low, high):
            return cls(sounding, level, "is clipped throughout: most of its waveform is cut off")
        return cls(sounding, level, None)


def _have_sound(
    blocks: Samples, ranges: npt.NDArray[np.float32], subtype: str
) -> npt.NDArray[np.bool_]:
    """Return which blocks hold more than the few levels of a dithered constant."""
    step = 1 / 128 if subtype in ("PCM_U8", "PCM_S8") else 1 / 32768
    has_sound = ranges > _MAX_LEVELS * step
    quiet = np.flatnonzero(~has_sound & (ranges > _MIN_RANGE))
    levels = 1 + np.count_nonzero(np.diff(np.sort(blocks[quiet], axis=1), axis=1), axis=1)
    has_sound[quiet] = levels > _MAX_LEVELS
    return has_sound


def _is_clipped(blocks: Samples, low: float, high: float) -> bool:
    """Tell whether many samples in nearly all blocks are at the lowest or highest value."""
    if high - low < _MIN_CLIPPED_RANGE:
        return False
    margin = 1e-4 * (high - low)
    at_limit = (blocks >= high - margin) | (blocks <= low + margin)
    if at_limit.mean() < _CLIPPED_SAMPLES:
        return False
    return float(at_limit.any(axis=1).mean()) >= _CLIPPED_BLOCKS


def _choose(channels: list[_Channel]) -> int:
    loudest = max((c.level for c in channels if c.defect is None), default=0.0)

    def usable_time(index: int) -> float:
        channel = channels[index]
        return 0.0 if channel.defect or channel.is_open(loudest) else channel.sounding

    best = max(range(len(channels)), key=usable_time)  # the first of equals
    return best if 0.9 * usable_time(best) >= usable_time(0) and usable_time(best) > 0 else 0


def _scaled(path: str | Path, audio: Audio) -> tuple[Samples, list[Remark]]:
    """Return the samples within about −1…1, and a remark if they were not."""
    samples = audio.samples
    peak = float(np.abs(samples).max())
    if peak <= 1 or audio.subtype not in ("FLOAT", "DOUBLE"):
        return samples, []
    if peak < _MIN_INTEGER_PEAK and not np.array_equal(samples, np.rint(samples)):
        return samples, [Remark("above 1", f"peak {peak:.3g}")]
    full = next((scale for scale in _FULL_SCALES if peak <= scale), None)
    if full is None:
        raise AudioError(path, f"holds values of up to {peak:.3g}, on no known scale")
    return samples / np.float32(full), [Remark("integers", f"peak {peak:.6g}")]


def load_waveform(
    path: str | Path, sample_rate: int, resampling: Resampling = "kaiser"
) -> torch.Tensor:
    """Return the sound of a file at `sample_rate` Hz, float32 `[samples]`; may raise `AudioError`.

    `read_sound` says which channel that is.
    """
    return resample(read_sound(path), sample_rate, resampling)


def resample(sound: Sound, sample_rate: int, resampling: Resampling) -> torch.Tensor:
    """Return the samples of `sound` at `sample_rate` Hz, float32 `[samples]`."""
    import torch

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
    import torchaudio

    ratio = Fraction(target, source)
    if ratio.numerator * ratio.denominator > _MAX_KERNEL:
        ratio = ratio.limit_denominator(max(1, int((_MAX_KERNEL * source / target) ** 0.5)))
    options: dict[str, Any] = _KAISER if resampling == "kaiser" else {}
    module: torch.nn.Module = torchaudio.transforms.Resample(
        ratio.denominator, ratio.numerator, **options
    )
    return module
