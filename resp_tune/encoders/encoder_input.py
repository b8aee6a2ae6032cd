"""Turn a recording into the windows that an encoder hears: played faster, band-limited, cut."""

from __future__ import annotations

import dataclasses
import functools
import math
import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
import torchaudio

from resp_tune.encoders.encoder_settings import EncoderSettings, MelSettings, SidecarFile
from resp_tune.encoders.layers import Graph
from resp_tune.errors import UserError

TAPER = 0.05  # of the band's end, over which a low-pass falls to zero
_BLOCK = 4096  # samples, of multiples of which an FFT is fast
_PADDING = 0.1  # s of silence between the end of a recording and its beginning in the FFT


def check_input(
    shape: Sequence[int], sidecar: SidecarFile, default_layout: Sequence[str]
) -> EncoderSettings:
    """Return the settings of an encoder whose input has sizes `shape`, 0 where free.

    Raises `UserError` if the input does not fit them.
    """
    rate, mel = sidecar.rate, sidecar.mel
    shown = "×".join(str(n) if n else "?" for n in shape) or "no"
    if mel is None:
        free_axes = [n for n in shape[:-1] if n > 1]
        if not shape or free_axes or shape[-1] == 1:
            raise UserError(
                f"its input has {shown} values, no waveform: if it takes log-mel frames, say "
                "input: log-mel and mel: {…} in the YAML beside the file"
            )
        fixed = shape[-1]
    else:
        if mel.n_mels not in shape[-2:] and 0 not in shape[-2:]:
            raise UserError(f"its input has {shown} values, which are no {mel.n_mels} mel bands")
        if len(shape) < 2 or any(n > 1 for n in shape[:-2]):
            raise UserError(f"its input has {shown} values, no log-mel frames")
        fixed = _mel_samples(shape, mel)
    window = fixed if sidecar.window is None else round(sidecar.window * rate)
    if window == 0:
        raise UserError("its input may have any length: set window (s) in the YAML beside the file")
    if (
        fixed
        and window != fixed
        and (mel is None or _mel_frames(window, mel) != time_frames(shape, mel))
    ):
        raise UserError(
            f"window {window / rate:g} s gives {window} samples at {rate} Hz, and its input has "
            f"{shown} values: leave window out"
        )
    hop = max(1, window // 2) if sidecar.hop is None else max(1, round(sidecar.hop * rate))
    if hop > window:
        raise UserError(f"hop {hop / rate:g} s leaves gaps between windows of {window / rate:g} s")
    layout = _layouts(sidecar.layout, default_layout)
    return EncoderSettings(
        rate, window, hop, sidecar.level, sidecar.scale, sidecar.input, mel, layout
    )


def _layouts(given: Sequence[str], default: Sequence[str]) -> tuple[str, ...]:
    return (*given, *(axes for axes in default if len(axes) not in map(len, given)))


def time_frames(shape: Sequence[int], mel: MelSettings) -> int:
    """Return the size of the time axis of an input of log-mel frames, 0 if it is free."""
    time, bands = shape[-2:]
    if bands == mel.n_mels or (bands == 0 and time != mel.n_mels):
        return time
    return bands


def _mel_frames(samples: int, mel: MelSettings) -> int:
    margin = 0 if mel.centre else mel.n_fft
    return max(0, 1 + (samples - margin) // mel.hop_length)


def _mel_samples(shape: Sequence[int], mel: MelSettings) -> int:
    """Return the least samples that give the frames of an input of log-mel frames."""
    frames = time_frames(shape, mel)
    return frames and (frames - 1) * mel.hop_length + (1 if mel.centre else mel.n_fft)


def played_at(
    waveform: torch.Tensor, rate: int, speed: int, f_max: float | None
) -> npt.NDArray[np.float32]:
    """Return `waveform`, `[samples]` at `rate` Hz, played `speed` times as fast, at `rate` Hz too.

    Nothing above `f_max` Hz of the recording is left, and nothing above `rate / (2 · speed)`: the
    last `TAPER` of the band falls to zero as half a cosine. One FFT filters and decimates.
    """
    edge, sound = rate / (2 * speed), np.asarray(waveform.numpy(), np.float32)
    if speed == 1 and (f_max is None or f_max >= edge):
        return sound
    # NumPy's FFT, because the rounding of torch's depends on the number of threads.
    length = _BLOCK * math.ceil((len(sound) + _PADDING * rate) / _BLOCK)
    spectrum = np.fft.rfft(sound, n=length)[: length // (2 * speed) + 1]
    hertz = np.arange(len(spectrum)) * (rate / length)
    end = edge if f_max is None else min(f_max, edge)
    fall = ((hertz - (1 - TAPER) * end) / (TAPER * end)).clip(0, 1)
    gain = (1 + np.cos(math.pi * fall)) / (2 * speed)
    played = np.fft.irfft(spectrum * gain, n=length // speed)
    return played[: math.ceil(len(sound) / speed)].astype(np.float32)


def at_level(played: npt.NDArray[np.float32], level: float | None) -> npt.NDArray[np.float32]:
    """Return a sound at `level` dB full scale (RMS); silence, and any without a level, as it is."""
    rms = float(np.sqrt(np.mean(np.square(played, dtype=np.float64))))
    if level is None or rms < 1e-9:
        return played
    return played * np.float32(10 ** (level / 20) / rms)


def window_starts(samples: int, settings: EncoderSettings) -> npt.NDArray[np.int64]:
    """Return where the windows of a sound begin: every hop, and one that ends with the sound."""
    last = max(samples - settings.window, 0)
    starts = np.arange(0, last + 1, settings.hop, dtype=np.int64)
    return starts if starts[-1] == last else np.append(starts, last)


def window_at(
    played: npt.NDArray[np.float32], start: int, settings: EncoderSettings
) -> npt.NDArray[np.float32]:
    """Return a window of a sound; one that is shorter than a window is repeated to fill it."""
    window = played[start : start + settings.window]
    if len(window) < settings.window:
        window = np.resize(window, settings.window)
    return window * np.float32(settings.scale)


def shaped_input(
    window: npt.NDArray[np.float32], graph: Graph | tuple[int, ...], settings: EncoderSettings
) -> tuple[npt.NDArray[np.float32], tuple[int, ...]]:
    """Return a window as the encoder's input takes it, float32, and the shape of that.

    `graph`: the encoder's graph, or the sizes of its input.
    """
    shape = graph.input_shape if isinstance(graph, Graph) else graph
    if settings.mel is None:
        whole = (*(1 for _ in shape[:-1]), len(window))
        return np.ascontiguousarray(window, np.float32).reshape(whole), whole
    frames = _log_mels(torch.from_numpy(window), settings.rate, settings.mel)
    time_first = time_frames(shape, settings.mel) == shape[-2]
    values = (frames if time_first else frames.T).contiguous().numpy()
    whole = (*(1 for _ in shape[:-2]), *values.shape)
    return values.reshape(whole), whole


def _log_mels(window: torch.Tensor, rate: int, mel: MelSettings) -> torch.Tensor:
    """Return log-mel frames, float32 `[frames, n_mels]`."""
    power = _mel_transform(rate, mel)(window).T.clamp(min=mel.floor)
    logged = power.log() if mel.log == "ln" else power.log10() * (10 if mel.log == "db" else 1)
    return torch.div(logged - mel.mean, mel.sd)


@functools.lru_cache(maxsize=8)
def _mel_transform(rate: int, mel: MelSettings) -> torchaudio.transforms.MelSpectrogram:
    f_max = rate / 2 if mel.f_max is None else mel.f_max
    if f_max > rate / 2 or mel.f_min >= f_max:
        raise UserError(f"mel: {mel.f_min:g} to {f_max:g} Hz does not fit a rate of {rate} Hz")
    with warnings.catch_warnings():
        # Empty filters are the encoder's own business.
        warnings.filterwarnings("ignore", message="At least one mel filterbank has all zero values")
        return torchaudio.transforms.MelSpectrogram(
            rate,
            n_fft=mel.n_fft,
            hop_length=mel.hop_length,
            f_min=mel.f_min,
            f_max=f_max,
            n_mels=mel.n_mels,
            power=mel.power,
            center=mel.centre,
            norm=None if mel.norm == "none" else mel.norm,
            mel_scale=mel.scale,
        )


def identity(settings: EncoderSettings) -> dict[str, object]:
    """Return the settings as plain values for JSON, part of the key of a feature cache."""
    return dataclasses.asdict(settings)
