"""Run TFLite files with LiteRT."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from resp_tune.common.text import shorten
from resp_tune.encoders.layers import Graph, Layer
from resp_tune.errors import UserError

LIBRARIES = "LiteRT"
SAME = 0.8  # correlation of a layer's values with and without LiteRT's delegate


def read_graph(content: bytes) -> Graph:
    """Return what a TFLite file holds; raise `UserError` for one that cannot be used."""
    interpreter = _interpreter(content)
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    if inputs[0]["dtype"] is not np.float32:
        kind = inputs[0]["dtype"].__name__
        raise UserError(f"its input is {kind}: convert it with float32 as the type of its input")
    details = {d["index"]: d for d in interpreter.get_tensor_details()}
    layers = []
    for index in _computed(content, inputs[0]["index"]):
        d = details.get(index)
        if d is not None and _is_kept(d):
            sizes = tuple(max(int(n), 0) for n in d["shape_signature"])
            layers.append(Layer(index, str(d["name"]), sizes))
    if not layers:
        raise UserError("it computes nothing that can be kept")
    shape = tuple(max(int(n), 0) for n in inputs[0]["shape_signature"])
    return Graph(shape, tuple(layers), str(outputs[0]["name"]), ("NTFC", "NTC"))


def session(
    content: bytes, layers: Sequence[Layer], input_shape: tuple[int, ...]
) -> Callable[[npt.NDArray[np.float32]], list[npt.NDArray[np.float32]]]:
    """Return a function from one input to the values of `layers`, float32; for one thread.

    LiteRT's delegate for CPUs is three times as fast. It may fuse operators, so that a layer's
    tensor is never written: it gives those layers whose values for a window of noise it has. Each
    layer is judged alone, or its values would depend on which others are asked for, and `predict`
    asks for one of those that a search kept.
    """
    plain = _runner(content, layers, input_shape, delegate=False)
    fast = _runner(content, layers, input_shape, delegate=True)
    noise = np.random.default_rng(0).normal(0, 0.1, input_shape).astype(np.float32)
    alike = [_alike(one, other) for one, other in zip(plain(noise), fast(noise), strict=True)]
    if all(alike):
        return fast
    if not any(alike):
        return plain

    def run(values: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
        pairs = zip(alike, fast(values), plain(values), strict=True)
        return [one if use else other for use, one, other in pairs]

    return run


def _alike(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> bool:
    """Return whether two arrays are equal but for the rounding of quantised arithmetic."""
    if one.shape != other.shape or not np.isfinite(other).all():
        return False
    if np.array_equal(one, other):
        return True
    a, b = (x.ravel().astype(np.float64) - x.mean(dtype=np.float64) for x in (one, other))
    # Not by BLAS: OpenBLAS ends its threads when the process forks, and a product that runs at that
    # moment, while Ray starts, never returns.
    norms = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return norms > 0 and float((a * b).sum()) / norms > SAME


def _runner(
    content: bytes, layers: Sequence[Layer], input_shape: tuple[int, ...], *, delegate: bool
) -> Callable[[npt.NDArray[np.float32]], list[npt.NDArray[np.float32]]]:
    interpreter = _interpreter(content, input_shape, delegate=delegate)
    index = interpreter.get_input_details()[0]["index"]
    details = {d["index"]: d for d in interpreter.get_tensor_details()}

    def run(values: npt.NDArray[np.float32]) -> list[npt.NDArray[np.float32]]:
        interpreter.set_tensor(index, values)
        interpreter.invoke()
        return [_dequantised(interpreter.get_tensor(x.index), details[x.index]) for x in layers]

    return run


def _dequantised(values: npt.NDArray[Any], detail: dict[str, Any]) -> npt.NDArray[np.float32]:
    scale, zero = detail["quantization"]
    if values.dtype == np.float32:
        return values
    real: npt.NDArray[np.float32] = (values.astype(np.float32) - zero) * np.float32(scale or 1.0)
    return real


_SAID = threading.Event()  # LiteRT prints once in a process that it uses its delegate


@contextlib.contextmanager
def _silent(*, delegate: bool) -> Iterator[None]:
    """Send the process's stderr nowhere while its first delegate is made.

    LiteRT has no setting against that line; what is wrong with a file is also in its exceptions.
    """
    if _SAID.is_set() or not delegate:
        yield
        return
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
        _SAID.set()
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _is_kept(detail: dict[str, Any]) -> bool:
    """Return whether a tensor holds real numbers: floats, or integers with a scale."""
    if not 1 <= len(detail["shape"]) <= 4:
        return False
    floats = detail["dtype"] in (np.float32, np.float16)
    return floats or (
        detail["dtype"] in (np.int8, np.uint8, np.int16) and detail["quantization"][0] > 0
    )


def _computed(content: bytes, given: int) -> list[int]:
    """Return the tensors that a file computes from tensor `given`, in order."""
    from ai_edge_litert import schema_py_generated as schema

    graph = schema.Model.GetRootAs(content, 0).Subgraphs(0)
    found = {given: None}
    for i in range(graph.OperatorsLength()):
        operator = graph.Operators(i)
        if any(int(operator.Inputs(j)) in found for j in range(operator.InputsLength())):
            found |= dict.fromkeys(
                int(operator.Outputs(j)) for j in range(operator.OutputsLength())
            )
    return list(found)[1:]


def _interpreter(
    content: bytes, input_shape: tuple[int, ...] | None = None, *, delegate: bool = True
) -> Any:
    """Return an interpreter with one thread; raise `UserError` for a file that it refuses.

    Without an `input_shape` it can run only if the file fixes that of its input.
    """
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    resolver = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    with warnings.catch_warnings():
        # That all tensors are preserved is meant for debugging, which `session` makes up for.
        warnings.filterwarnings("ignore", message=".*experimental_preserve_all_tensors")
        try:
            with _silent(delegate=delegate):
                interpreter = Interpreter(
                    model_content=content,
                    num_threads=1,
                    experimental_preserve_all_tensors=True,
                    experimental_op_resolver_type=OpResolverType.AUTO if delegate else resolver,
                )
                inputs = interpreter.get_input_details()
                if len(inputs) != 1:
                    raise UserError(f"it has {len(inputs)} inputs, an encoder has one")
                shape = tuple(inputs[0]["shape_signature"])
                if input_shape is not None and input_shape != shape:
                    interpreter.resize_tensor_input(inputs[0]["index"], input_shape)
                if input_shape is not None or min(shape, default=1) > 0:
                    interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise UserError(f"LiteRT cannot read it ({shorten(str(error), 120)})") from error
    return interpreter
