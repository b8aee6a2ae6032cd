"""The front end: a waveform becomes mel frames, in dB or PCEN, for many banks from one STFT."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from functools import lru_cache

import torch
import torchaudio.functional as audio_functional

from resp_tune.config import FrontEnd
from resp_tune.errors import UserError

SILENCE_DB = -100.0  # 10·log10 of the floor 1e-10: what a frame of zeros becomes
# PCEN's constants as Wang et al. (arXiv:1607.05666) and librosa give them; the time is in seconds.
PCEN_GAIN, PCEN_BIAS, PCEN_POWER, PCEN_SECONDS, PCEN_FLOOR = 0.98, 2.0, 0.5, 0.4, 1e-6
PCEN_SCALE = 2.0**31  # of waveforms in −1…1, for which the constants are not meant


def log_mels(waveform: torch.Tensor, front_ends: Sequence[FrontEnd]) -> list[torch.Tensor]:
    """Log-mel frames of `waveform` under each front end.

    `waveform`: float32 `[samples]`; each result: float32 `[frames, n_mels]`, in dB or by PCEN.
    The front ends must share sample rate, n_fft and hop: the power spectrogram is computed once.
    Frames are centred with reflected edges and are not clamped by `top_db`, since that depends on
    which part of a recording becomes a clip. Equals torchaudio's `MelSpectrogram` followed by
    `AmplitudeToDB(top_db=None)`, transposed.
    """
    power = _power_spectrogram(waveform, front_ends[0].n_fft, front_ends[0].hop_length)
    return [
        _compress(mels, f)
        for mels, f in zip(_mel_powers(power, tuple(front_ends)), front_ends, strict=True)
    ]


def _compress(mel_power: torch.Tensor, front_end: FrontEnd) -> torch.Tensor:
    if front_end.compression == "pcen":
        return pcen(mel_power, front_end.sample_rate / front_end.hop_length)
    return mel_power.clamp_(min=1e-10).log10_().mul_(10.0)


def silence(front_end: FrontEnd) -> float:
    """The value of every band in a frame of zeros."""
    return SILENCE_DB if front_end.compression == "db" else 0.0


def pcen(mel_power: torch.Tensor, frame_rate: float) -> torch.Tensor:
    """Per-channel energy normalisation of `[frames, n_mels]`, `frame_rate` frames a second.

    `(E / (ε + M)^gain + bias)^power − bias^power`, where M smooths E over about `PCEN_SECONDS` by a
    first-order filter that starts at the first frame: what is steady in a band (the stethoscope's
    hum, its own frequency response) is divided away. As `librosa.pcen`.
    """
    energy = mel_power * PCEN_SCALE
    t = PCEN_SECONDS * frame_rate
    b = (math.sqrt(1 + 4 * t**2) - 1) / (2 * t**2)
    # M starts at the first energy: a filter at rest would take that for the end of a silence.
    started = torch.cat([energy[:1] / b, energy[1:]]).double()
    smooth = audio_functional.lfilter(
        started.T.contiguous(),
        torch.tensor([1.0, b - 1.0], dtype=torch.float64),
        torch.tensor([b, 0.0], dtype=torch.float64),
        clamp=False,
    ).T.float()
    ratio: torch.Tensor = energy / (PCEN_FLOOR + smooth).pow_(PCEN_GAIN)
    return ratio.add_(PCEN_BIAS).pow_(PCEN_POWER).sub_(PCEN_BIAS**PCEN_POWER)


def _power_spectrogram(waveform: torch.Tensor, n_fft: int, hop_length: int) -> torch.Tensor:
    """`|STFT|²`, float32 `[frames, n_fft // 2 + 1]`, with a periodic Hann window."""
    shortest = n_fft // 2 + 1  # reflection needs one sample more than it mirrors
    if waveform.numel() < shortest:
        waveform = torch.nn.functional.pad(waveform, (0, shortest - waveform.numel()))
    margin = (n_fft // 2, n_fft // 2)
    padded = torch.nn.functional.pad(waveform[None], margin, mode="reflect")[0]
    frames, window = padded.unfold(0, n_fft, hop_length), torch.hann_window(n_fft)
    power = torch.empty(len(frames), n_fft // 2 + 1)
    # A few frames at a time stay in the processor's cache from the window to the square.
    size = max(1, _IN_CACHE // (8 * n_fft))
    for start in range(0, len(frames), size):
        part = slice(start, start + size)
        spectrum = torch.view_as_real(torch.fft.rfft(frames[part] * window))
        real, imaginary = spectrum.unbind(-1)
        torch.mul(real, real, out=power[part]).addcmul_(imaginary, imaginary)
    return power


_IN_CACHE = 1_000_000  # bytes, about a core's second-level cache


def _mel_powers(power: torch.Tensor, front_ends: tuple[FrontEnd, ...]) -> list[torch.Tensor]:
    """`power @ mel_bank(f)` of each front end, without most of the banks' zeros."""
    powers = [torch.empty(len(power), f.n_mels) for f in front_ends]
    for bins, filters, places in _filter_groups(front_ends):
        heard = power[:, bins] @ filters
        for which, own, columns in places:
            powers[which][:, own] = heard[:, columns]
    return powers


Place = tuple[int, slice, slice]  # which front end, its bands, their columns in the group


@lru_cache(maxsize=64)
def _filter_groups(
    front_ends: tuple[FrontEnd, ...],
) -> list[tuple[slice, torch.Tensor, list[Place]]]:
    """All filters of all banks in groups that hear few bins: the bins, their weights, the places.

    A triangle hears a few of the bins, the same as its neighbours in every bank. Small groups make
    many small products, large ones bring the zeros back: 16 filters, or 32 where banks share them.
    """
    banks = [mel_bank(f) for f in front_ends]
    peaks = [
        (peak, which, n)
        for which, bank in enumerate(banks)
        # Rising, as the filters do: an empty one has its peak nowhere.
        for n, peak in enumerate(itertools.accumulate(bank.argmax(dim=0).tolist(), max))
    ]
    size = min(32, 16 * len(banks))
    groups = []
    peaks.sort()
    for start in range(0, len(peaks), size):
        members = sorted((which, n) for _, which, n in peaks[start : start + size])
        filters = torch.stack([banks[which][:, n] for which, n in members], dim=1)
        heard = filters.any(dim=1).nonzero()
        bins = slice(int(heard[0]), int(heard[-1]) + 1) if len(heard) else slice(0, 0)
        places: list[Place] = []
        for which in dict.fromkeys(which for which, _ in members):
            columns = [column for column, member in enumerate(members) if member[0] == which]
            bands = [members[column][1] for column in columns]
            # A bank's filters rise with frequency, so those of a group are neighbours.
            places.append((which, _span(bands), _span(columns)))
        groups.append((bins, filters[bins].contiguous(), places))
    return groups


def _span(numbers: list[int]) -> slice:
    return slice(numbers[0], numbers[-1] + 1)


@lru_cache(maxsize=64)
def mel_bank(front_end: FrontEnd) -> torch.Tensor:
    """Triangles on the HTK mel scale, float32 `[n_fft // 2 + 1, n_mels]`."""
    with warnings.catch_warnings():
        # torchaudio warns of empty filters; `check_filters` refuses them and says what to change.
        warnings.filterwarnings("ignore", message="At least one mel filterbank has all zero values")
        bank: torch.Tensor = audio_functional.melscale_fbanks(
            n_freqs=front_end.n_fft // 2 + 1,
            f_min=front_end.f_min,
            f_max=front_end.f_max,
            n_mels=front_end.n_mels,
            sample_rate=front_end.sample_rate,
            norm=None,
            mel_scale="htk",
        )
    return bank


def empty_filters(front_end: FrontEnd) -> int:
    """How many mel filters fall between two FFT bins and are always silent."""
    return int((mel_bank(front_end).amax(0) == 0).sum())


def check_filters(front_end: FrontEnd) -> None:
    """Raise `UserError` for a bank with empty filters: a trial with dead inputs is wasted."""
    if empty := empty_filters(front_end):
        raise UserError(
            f"n_mels {front_end.n_mels} leaves {empty} empty mel filter{'s' * (empty > 1)} at "
            f"{front_end.sample_rate} Hz, n_fft {front_end.n_fft}, "
            f"{front_end.f_min:g} to {front_end.f_max:g} Hz: use fewer mels or a larger n_fft"
        )
