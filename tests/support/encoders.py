"""Tiny encoders with known or random weights, made by the tests; the real one, if it is there."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from resp_tune.features.cache import AudioSource, FeatureCaches
from support.small_sets import real_set

WINDOW, FRAMES, BANDS = 1600, 4, 2  # samples at 16 kHz, and what the layer `map` has
CHANNELS = WINDOW // (FRAMES * BANDS)


def save_encoder(
    path: Path,
    *,
    seed: int = 0,
    length: int | str = WINDOW,
    gain: float = 1.0,
    inputs: int = 1,
    kind: int = TensorProto.FLOAT,
    metadata: dict[str, str] | None = None,
) -> Path:
    """Write an ONNX encoder of `[1, length]` samples.

    Its layers: `map` `[1, 200, 4, 2]` (N, C, T, F), which are the samples times `gain` in their
    order within frame and band; `hidden` `[1, 4, 6]`, random sums of each frame; `embedding`
    `[1, 6]`, their mean, the only output.
    """
    weights = np.random.default_rng(seed).normal(size=(WINDOW // FRAMES, 6)).astype(np.float32)

    def ints(name: str, values: Sequence[int]) -> TensorProto:
        return numpy_helper.from_array(np.array(values, np.int64), name)

    nodes = [
        helper.make_node("Cast", ["sound"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "gain"], ["louder"]),
        helper.make_node("Reshape", ["louder", "framed_as"], ["framed"]),
        helper.make_node("Transpose", ["framed"], ["map"], perm=[0, 3, 1, 2]),
        helper.make_node("Reshape", ["louder", "frames_as"], ["frames"]),
        helper.make_node("MatMul", ["frames", "weights"], ["hidden"]),
        helper.make_node("ReduceMean", ["hidden"], ["embedding"], axes=[1], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, kind, [1, length])
         for name in ("sound", "second")[:inputs]],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [1, 6])],
        [
            numpy_helper.from_array(np.array(gain, np.float32), "gain"),
            ints("framed_as", [1, FRAMES, BANDS, CHANNELS]),
            ints("frames_as", [1, FRAMES, WINDOW // FRAMES]),
            numpy_helper.from_array(weights, "weights"),
        ],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    if metadata:
        helper.set_model_props(model, metadata)
    path.write_bytes(model.SerializeToString())
    return path


def save_mel_encoder(path: Path, frames: int, n_mels: int) -> Path:
    """Write an ONNX encoder of `[1, 1, n_mels, frames]` values, whose layer is their double."""
    shape = [1, 1, n_mels, frames]
    graph = helper.make_graph(
        [helper.make_node("Add", ["mel", "mel"], ["double"])],
        "mel",
        [helper.make_tensor_value_info("mel", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("double", TensorProto.FLOAT, shape)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def save_with_external_weights(path: Path) -> Path:
    """Write the tiny encoder with its weights in a file beside it."""
    model = onnx.load(save_encoder(path))
    onnx.save(
        model, path, save_as_external_data=True, location="weights.bin", size_threshold=0
    )  # fmt: skip
    return path


def real_encoder() -> Path:
    """Return the path of YAMNet beside the real recordings, or skip."""
    path = real_set().parent / "encoders" / "yamnet.tflite"
    if not path.is_file():
        pytest.skip("no encoders/yamnet.tflite beside RESP_TUNE_TEST_DATA")
    return path


def ramp(seconds: float, rate: int, resampling: str = "kaiser") -> torch.Tensor:
    """A sound whose samples, multiples of 1/4096, say where they are; exact in float16."""
    return (torch.arange(round(seconds * rate)) % 2048) / 4096


def caches_of(
    root: Path, *seconds: float, load: Any = ramp, limit_bytes: int = 10**9
) -> FeatureCaches:
    """Return the empty caches, below `root`, of recordings of these lengths."""
    sources = [AudioSource(f"r{i}", f"d{i} {s}", partial(load, s)) for i, s in enumerate(seconds)]
    return FeatureCaches(root, tuple(sources), limit_bytes)
