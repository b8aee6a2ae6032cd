"""The frames of recordings that a frozen encoder gives, by layer and speed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from resp_tune.config import EncoderFrontEnd
from resp_tune.encoders.encode import EncodedFrames, encode
from resp_tune.encoders.encoder_file import Encoder
from resp_tune.encoders.encoder_input import identity, window_starts
from resp_tune.encoders.layers import KeptLayer

Load = Callable[[int, Any], torch.Tensor]


@dataclass(frozen=True)
class EncoderFrames:
    """The frames of many recordings, concatenated.

    `values`: float16 `[rows, bands · channels]`. `first`, `count`: int64 `[recordings]`, the rows
    of each recording. `centre`: float32 `[rows]`, the middle of each frame in its recording, in s,
    ascending.
    """

    values: torch.Tensor
    first: torch.Tensor
    count: torch.Tensor
    centre: torch.Tensor


def encoder_identity(front_end: EncoderFrontEnd, encoder: Encoder) -> dict[str, Any]:
    """Return what makes the frames what they are, besides the recordings, as values for JSON."""
    kept = encoder.layer(front_end.layer)
    return {
        "encoder": encoder.sha256,
        "settings": identity(encoder.settings),
        "layer": kept.layer.index,
        "axes": kept.axes,
        "speed": front_end.speed,
        "f_max": front_end.f_max,
        "resampling": front_end.resampling,
    }


def encoder_pass(
    front_ends: Sequence[EncoderFrontEnd], encoder: Encoder
) -> Callable[[Load], list[EncodedFrames]]:
    """Return what computes the frames of a recording for each front end in one pass.

    All `front_ends` are of `encoder`. Raises `ValueError` if they have not one `f_max` and one
    `resampling`.
    """
    if len({(f.f_max, f.resampling) for f in front_ends}) > 1:
        raise ValueError("front ends of one pass have one f_max and one resampling")
    f_max, resampling = front_ends[0].f_max, front_ends[0].resampling
    each = [(f.speed, encoder.layer(f.layer)) for f in front_ends]
    wanted = dict[int, dict[KeptLayer, None]]()
    for speed, layer in each:
        wanted.setdefault(speed, {})[layer] = None
    layers = {speed: tuple(own) for speed, own in wanted.items()}

    def frames(load: Load) -> list[EncodedFrames]:
        found = encode(encoder, load(encoder.settings.rate, resampling), layers, f_max)
        return [found[key] for key in each]

    return frames


def encode_waveform(
    front_ends: Sequence[EncoderFrontEnd], encoder: Encoder, load: Load
) -> list[EncoderFrames]:
    """Return the frames of one recording for each front end, which are not cached.

    `load(rate, resampling)` gives float32 `[samples]` at `rate` Hz; else as `encoder_pass`.
    """
    result = []
    for frames in encoder_pass(front_ends, encoder)(load):
        values, centre = torch.from_numpy(frames.values), torch.from_numpy(frames.centre)
        first, count = torch.zeros(1, dtype=torch.int64), torch.tensor([len(values)])
        result.append(EncoderFrames(values, first, count, centre))
    return result


def expected_rows(seconds: float, front_end: EncoderFrontEnd, encoder: Encoder) -> int:
    """Return the frames of a recording of `seconds` s, to within those of a window."""
    settings, frames = encoder.settings, encoder.layer(front_end.layer).frames
    windows = seconds * settings.rate / (front_end.speed * settings.window)
    return max(math.ceil(windows * frames), expected_windows(seconds, front_end.speed, encoder))


def expected_windows(seconds: float, speed: int, encoder: Encoder) -> int:
    """Return how often the encoder runs for a recording of `seconds` s."""
    return len(window_starts(int(seconds * encoder.settings.rate / speed), encoder.settings))
