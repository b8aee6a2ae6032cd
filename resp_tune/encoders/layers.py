"""The layers of an encoder's graph: how one is found by name or index, and what its axes are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from resp_tune.common.text import shorten
from resp_tune.errors import UserError

LAST = "last"
SHOWN = 12  # layers in an error message


@dataclass(frozen=True)
class Layer:
    """A tensor that an encoder computes. `shape`: its sizes, 0 where the file does not say.

    `index` counts as the runtime does: tensors of a TFLite file, outputs of an ONNX file's nodes.
    """

    index: int
    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Graph:
    """What an encoder's file holds.

    `input_shape`: sizes of its only input, 0 where free. `layers` are in the order in which they
    are computed; `output` is the name of the file's first output. `facts` are the settings and the
    licence that an ONNX file's metadata hold, as text.
    """

    input_shape: tuple[int, ...]
    layers: tuple[Layer, ...]
    output: str
    default_layout: tuple[str, ...]
    facts: tuple[tuple[str, str], ...] = ()


def find_layer(graph: Graph, wanted: str) -> Layer:
    """Return the layer that `wanted` names: `last`, a name, or an index.

    A name goes before an index: exporters of PyTorch name layers by numbers of their own.
    """
    if wanted == LAST:
        return _last(graph)
    by_index = {str(layer.index): layer for layer in graph.layers}
    by_name = {layer.name: layer for layer in reversed(graph.layers)}
    if found := by_name.get(wanted, by_index.get(wanted)):
        return found
    raise UserError(
        f"encoder_layer '{shorten(wanted)}' is not one of its {len(graph.layers)} layers: "
        f"{_listed(graph.layers)}"
    )


def _last(graph: Graph) -> Layer:
    """Return the last feature map at or before the first output; without one, that output."""
    end = next((i for i, x in enumerate(graph.layers) if x.name == graph.output), -1)
    before = graph.layers[: end + 1] if end >= 0 else graph.layers
    maps = [x for x in before if len(x.shape) in (3, 4) and x.shape[0] in (0, 1)]
    return (maps or before)[-1]


def _listed(layers: Sequence[Layer]) -> str:
    """Return a few of the layers, evenly spaced, the last among them."""
    step = max(1, math.ceil(len(layers) / SHOWN))
    chosen = list(layers[::-1][::step])[::-1]
    shown = (f"{x.index} {shorten(x.name, 32)} {_sizes(x.shape)}" for x in chosen)
    return ", ".join(shown) + (" and others between them" if step > 1 else "")


def _sizes(shape: Sequence[int]) -> str:
    return "×".join(str(n) if n else "?" for n in shape)


@dataclass(frozen=True)
class KeptLayer:
    """A layer whose values are kept, in the axes that one run of the encoder gave them.

    Its `frames` divide a window evenly; each has `bands` × `channels` values.
    """

    layer: Layer
    axes: str
    frames: int
    bands: int
    channels: int

    @property
    def dim(self) -> int:
        """Return the number of values of a frame."""
        return self.bands * self.channels


def kept_layer(layer: Layer, shape: Sequence[int], layouts: Sequence[str]) -> KeptLayer:
    """Return how `layer`, of this shape, is kept; raise `UserError` for one that cannot be."""
    axes = {1: "C", 2: "TC"}.get(len(shape)) or next(
        (axes for axes in layouts if len(axes) == len(shape)), ""
    )
    sizes = dict(zip(axes, shape, strict=True)) if axes else {}
    if not axes or sizes.get("N", 1) != 1 or 0 in shape:
        raise UserError(
            f"encoder_layer {layer.index} '{shorten(layer.name)}' has {_sizes(shape)} values, "
            "which are no frames of one sound: choose another layer, or say what its axes are "
            "with layout: in the YAML beside the file"
        )
    return KeptLayer(layer, axes, sizes.get("T", 1), sizes.get("F", 1), sizes["C"])
