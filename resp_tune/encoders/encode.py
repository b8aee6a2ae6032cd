"""Run a frozen encoder over recordings: one run of it for each window gives all its layers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from resp_tune.common.text import shorten
from resp_tune.encoders.encoder_file import Encoder
from resp_tune.encoders.encoder_input import (
    at_level,
    played_at,
    shaped_input,
    window_at,
    window_starts,
)
from resp_tune.encoders.layers import KeptLayer
from resp_tune.errors import RunError

LARGEST = 65_504.0  # of a float16
Values = npt.NDArray[np.float16]
Centres = npt.NDArray[np.float64]


@dataclass(frozen=True)
class EncodedFrames:
    """The frames of one recording: float16 `[frames, bands · channels]`, time ascending.

    `centre`: the time of each frame's middle in the recording, in s, float32 `[frames]`.
    """

    values: npt.NDArray[np.float16]
    centre: npt.NDArray[np.float32]


def encode(
    encoder: Encoder,
    waveform: torch.Tensor,
    wanted: Mapping[int, Sequence[KeptLayer]],
    f_max: float | None,
) -> dict[tuple[int, KeptLayer], EncodedFrames]:
    """Return what `encoder` makes of `waveform`, `[samples]` at its rate, by speed and layer.

    `wanted`: the layers by speed. Where windows overlap, a frame is taken from the window whose
    middle is nearest, so that each part of the recording is counted once.
    """
    layers = list(dict.fromkeys(layer for own in wanted.values() for layer in own))
    run, settings = _session(encoder, layers), encoder.settings
    result = dict[tuple[int, KeptLayer], EncodedFrames]()
    for speed, own in wanted.items():
        played = at_level(played_at(waveform, settings.rate, speed, f_max), settings.level)
        starts = window_starts(len(played), settings)
        centre = {x: frame_centres(starts, x.frames, settings.window) for x in own}
        kept = {
            x: nearest_frames(starts, c, settings.window, len(played)) for x, c in centre.items()
        }
        parts: dict[KeptLayer, list[Values]] = {layer: [] for layer in own}
        for i, start in enumerate(starts.tolist()):
            outputs = dict(zip(layers, run(window_at(played, start, settings)), strict=True))
            for layer in own:
                parts[layer].append(_frames(outputs[layer], layer, encoder)[kept[layer][i]])
        for layer in own:
            seconds = centre[layer][kept[layer]] * (speed / settings.rate)
            result[speed, layer] = EncodedFrames(
                np.concatenate(parts[layer]), seconds.astype(np.float32)
            )
    return result


def frame_centres(starts: npt.NDArray[np.int64], frames: int, window: int) -> Centres:
    """Return the middle of each of the `frames` of windows that begin at `starts`, in samples.

    float64 `[windows, frames]`; exact, as samples and frames are below 2^26.
    """
    return starts[:, None] + (2 * np.arange(frames) + 1) * (window / (2 * frames))


def nearest_frames(
    starts: npt.NDArray[np.int64], centre: Centres, window: int, samples: int
) -> npt.NDArray[np.bool_]:
    """Return which frames are kept, bool `[windows, frames]`.

    A frame is kept if the middle of its window is the nearest of all windows' and it lies in the
    sound of `samples` samples; at least the first frame is.
    """
    between = (starts[:-1] + starts[1:] + window) / 2
    low, high = np.append(-np.inf, between)[:, None], np.append(between, np.inf)[:, None]
    # By rounding, a frame on a border must not be lost, or kept twice.
    kept: npt.NDArray[np.bool_] = (centre >= low - 5e-4) & (centre < high - 5e-4)
    kept &= centre < samples
    kept[0, 0] |= not kept.any()
    return kept


def seconds_a_window(encoder: Encoder, windows: int = 5) -> float:
    """Measure the seconds that one core needs for a window and the encoder's layers."""
    layers, settings = list(dict.fromkeys(layer for _, layer in encoder.kept)), encoder.settings
    run, noise = _session(encoder, layers), np.random.default_rng(0).normal(0, 0.1, settings.window)
    run(noise.astype(np.float32))
    begun = time.thread_time()  # a runtime uses this thread alone
    for _ in range(windows):
        run(noise.astype(np.float32))
    return (time.thread_time() - begun) / windows


_OF_THREAD = threading.local()  # interpreters may not be shared


def _session(
    encoder: Encoder, layers: Sequence[KeptLayer]
) -> Callable[[npt.NDArray[np.float32]], list[npt.NDArray[np.float32]]]:
    """Return a function from a window to the values of `layers`, kept for this thread's next."""
    key = (encoder.sha256, encoder.settings, tuple(layers))
    if getattr(_OF_THREAD, "key", None) != key:
        _OF_THREAD.session, _OF_THREAD.key = encoder.session(layers), key
    session = _OF_THREAD.session

    def run(window: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
        values, _ = shaped_input(window, encoder.input_shape, encoder.settings)
        try:
            return list(session(values))
        except Exception as error:  # onnxruntime's classes derive from Exception alone
            raise RunError(
                f"encoder '{encoder.name}' failed: {shorten(str(error), 200)}"
            ) from error

    return run


def _frames(output: npt.NDArray[np.float32], kept: KeptLayer, encoder: Encoder) -> Values:
    """Return a layer's values as float16 `[frames, bands · channels]`."""
    if not np.isfinite(output).all():
        raise RunError(
            f"encoder '{encoder.name}': layer {kept.layer.index} gives values that are not finite: "
            "choose another layer or file"
        )
    order = [kept.axes.index(axis) for axis in "NTFC" if axis in kept.axes]
    frames = output.transpose(order).reshape(kept.frames, kept.dim)
    return frames.clip(-LARGEST, LARGEST).astype(np.float16)
