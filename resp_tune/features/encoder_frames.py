"""The frames of recordings that a frozen encoder gives, by layer and speed."""

from __future__ import annotations

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

    All `front_ends` are of `encoder`, and have one `f_max` and one `resampling`.
    """
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


def expected_rows(seconds: float, front_end: EncoderFrontEnd, encoder: Encoder) -> int:
    """Return the frames of a recording of `seconds` s, to within those of a window."""
    settings, kept = encoder.settings, encoder.layer(front_end.layer)
    samples = max(seconds * settings.rate / front_end.speed, settings.window)
    return (
        max(1, round(samples / settings.window * kept.frames))
        if kept.frames > 1
        else len(window_starts(int(samples), settings))
    )


def expected_windows(seconds: float, speed: int, encoder: Encoder) -> int:
    """Return how often the encoder runs for a recording of `seconds` s."""
    return len(window_starts(int(seconds * encoder.settings.rate / speed), encoder.settings))
