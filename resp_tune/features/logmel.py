"""The front end: transform a waveform to mel frames, in dB or PCEN; many banks share one STFT."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
import torchaudio.functional as audio_functional

from resp_tune.config import FrontEnd
from resp_tune.errors import UserError

SILENCE_DB = -100.0  # 10·log10 of the floor 1e-10: what a frame of zeros becomes
# PCEN's constants as Wang et al. (arXiv:1607.05666) and librosa give them; the time is in seconds.
PCEN_GAIN, PCEN_BIAS, PCEN_POWER, PCEN_SECONDS, PCEN_FLOOR = 0.98, 2.0, 0.5, 0.4, 1e-6
PCEN_SCALE = 2.0**31  # of waveforms in −1…1, for which the constants are not meant


@dataclass(frozen=True)
class Frames:
    """The log-mel frames of many recordings, concatenated.

    `values`: float16 dB (or PCEN) `[rows, n_mels]`; the last row is silence, for padding.
    `first`, `count`: int64 `[recordings]`, the rows of each recording.
    """

    values: torch.Tensor
    first: torch.Tensor
    count: torch.Tensor

    @property
    def silence(self) -> int:
        """Return the index of the row that holds silence."""
        return self.values.shape[0] - 1

    def to(self, device: torch.device) -> Frames:
        """Return these frames on `device`; on the CPU they stay memory-mapped."""
        return Frames(self.values.to(device), self.first, self.count)


def join_frames(log_mels: Sequence[torch.Tensor], silence: float = SILENCE_DB) -> Frames:
    """Concatenate one `[frames, n_mels]` tensor per recording in memory."""
    count = torch.tensor([len(m) for m in log_mels], dtype=torch.int64)
    last = torch.full((1, log_mels[0].shape[1]), silence)
    values = torch.cat([*log_mels, last]).to(torch.float16)
    return Frames(values, count.cumsum(0) - count, count)


def log_mels(waveform: torch.Tensor, front_ends: Sequence[FrontEnd]) -> list[torch.Tensor]:
    """Compute the log-mel frames of `waveform` for each front end.

    `waveform`: float32 `[samples]`; each result: float32 `[frames, n_mels]`, in dB or by PCEN.
    The front ends must share sample rate, n_fft and hop: the power spectrogram is computed once.
    Frames are centred with reflected edges and are not clamped by `top_db`, since that depends on
    which part of a recording becomes a clip. Equals torchaudio's `MelSpectrogram` followed by
    `AmplitudeToDB(top_db=None)`, transposed.
    """
    power = _power_spectrogram(waveform, front_ends[0].n_fft, front_ends[0].hop_length)
    return [
        pcen(_mel_power(power, f), f.sample_rate / f.hop_length)
        if f.compression == "pcen"
        else _mel_power(power, f).clamp_(min=1e-10).log10_().mul_(10.0)
        for f in front_ends
    ]


def silence(front_end: FrontEnd) -> float:
    """Return the value of every band in a frame of zeros."""
    return SILENCE_DB if front_end.compression == "db" else 0.0


def pcen(mel_power: torch.Tensor, frame_rate: float) -> torch.Tensor:
    """Apply per-channel energy normalisation to `[frames, n_mels]` at `frame_rate` frames/s.

    `(E / (ε + M)^gain + bias)^power − bias^power`, where M smooths E over about `PCEN_SECONDS` by a
    first-order filter that starts at the first frame: what is steady in a band (the stethoscope's
    hum, its own frequency response) is divided away. As `librosa.pcen`.
    """
    energy = mel_power * PCEN_SCALE
    t = PCEN_SECONDS * frame_rate
    b = (math.sqrt(1 + 4 * t**2) - 1) / (2 * t**2)
    # M starts at the first energy; from zero, the start would look like the end of a silence.
    padded = torch.cat([energy[:1] / b, energy[1:]]).double()
    smooth = audio_functional.lfilter(
        padded.T.contiguous(),
        torch.tensor([1.0, b - 1.0], dtype=torch.float64),
        torch.tensor([b, 0.0], dtype=torch.float64),
        clamp=False,
    ).T.float()
    ratio: torch.Tensor = energy / (PCEN_FLOOR + smooth).pow_(PCEN_GAIN)
    return ratio.add_(PCEN_BIAS).pow_(PCEN_POWER).sub_(PCEN_BIAS**PCEN_POWER)


def _power_spectrogram(waveform: torch.Tensor, n_fft: int, hop_length: int) -> torch.Tensor:
    """Return `|STFT|²`, float32 `[frames, n_fft // 2 + 1]`, with a periodic Hann window."""
    shortest = n_fft // 2 + 1  # reflection needs one sample more than it reflects
    if waveform.numel() < shortest:
        waveform = torch.nn.functional.pad(waveform, (0, shortest - waveform.numel()))
    margin = (n_fft // 2, n_fft // 2)
    padded = torch.nn.functional.pad(waveform[None], margin, mode="reflect")[0]
    frames, window = padded.unfold(0, n_fft, hop_length), torch.hann_window(n_fft)
    power = torch.empty(len(frames), n_fft // 2 + 1)
    # A few frames at a time stay in the CPU's cache from the window to the square.
    size = max(1, _IN_CACHE // (8 * n_fft))
    for start in range(0, len(frames), size):
        part = slice(start, start + size)
        spectrum = torch.view_as_real(torch.fft.rfft(frames[part] * window))
        real, imaginary = spectrum.unbind(-1)
        torch.mul(real, real, out=power[part]).addcmul_(imaginary, imaginary)
    return power


_IN_CACHE = 1_000_000  # bytes, about the L2 cache of a core


def _mel_power(power: torch.Tensor, front_end: FrontEnd) -> torch.Tensor:
    """Return `power @ mel_bank(front_end)`, leaving out most of the bank's zeros."""
    mels = torch.empty(len(power), front_end.n_mels)
    for bins, bands, weights in _filter_blocks(front_end):
        mels[:, bands] = power[:, bins] @ weights
    return mels


@lru_cache(maxsize=64)
def _filter_blocks(front_end: FrontEnd) -> list[tuple[slice, slice, torch.Tensor]]:
    """Return blocks of neighbouring filters: their FFT bins, their bands, the bank between them.

    Neighbouring triangles cover the same few bins: 16 at a time take 0.2 to 0.8 of the time of the
    whole bank. Smaller blocks make many small products, larger ones bring the zeros back.
    """
    bank, blocks = mel_bank(front_end), []
    for start in range(0, front_end.n_mels, 16):
        bands = slice(start, start + 16)
        covered = bank[:, bands].any(dim=1).nonzero()
        bins = slice(int(covered[0]), int(covered[-1]) + 1) if len(covered) else slice(0, 0)
        blocks.append((bins, bands, bank[bins, bands].contiguous()))
    return blocks


@lru_cache(maxsize=64)
def mel_bank(front_end: FrontEnd) -> torch.Tensor:
    """Return triangles on the HTK mel scale, float32 `[n_fft // 2 + 1, n_mels]`."""
    f = front_end
    with warnings.catch_warnings():
        # torchaudio warns of empty filters; `check_filters` refuses them and says what to change.
        warnings.filterwarnings("ignore", message="At least one mel filterbank has all zero values")
        bank: torch.Tensor = audio_functional.melscale_fbanks(
            f.n_fft // 2 + 1, f.f_min, f.f_max, f.n_mels, f.sample_rate, norm=None, mel_scale="htk"
        )
    return bank


def check_filters(front_end: FrontEnd) -> None:
    """Raise `UserError` for filters that fall between two FFT bins: they would waste a trial."""
    if empty := int((mel_bank(front_end).amax(0) == 0).sum()):
        raise UserError(
            f"n_mels {front_end.n_mels} leaves {empty} empty mel filter{'s' * (empty > 1)} at "
            f"{front_end.sample_rate} Hz, n_fft {front_end.n_fft}, "
            f"{front_end.f_min:g} to {front_end.f_max:g} Hz: use fewer mels or a larger n_fft"
        )
