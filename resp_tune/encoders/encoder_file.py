"""Open a frozen encoder: check its file, read what it wants to hear, find its layers."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from resp_tune.common.paths import user_path
from resp_tune.common.text import one_line, shorten
from resp_tune.config import EncoderFrontEnd
from resp_tune.encoders import litert_runtime, onnx_runtime
from resp_tune.encoders.encoder_input import check_input, identity, shaped_input
from resp_tune.encoders.encoder_settings import (
    UNKNOWN_LICENCE,
    EncoderSettings,
    SidecarFile,
    read_sidecar,
)
from resp_tune.encoders.layers import LAST, Graph, KeptLayer, find_layer, kept_layer
from resp_tune.errors import RunError, UserError

EXTRA = "pip install 'resp-tune[encoder]'"
RUNTIMES: dict[str, tuple[ModuleType, tuple[str, ...]]] = {
    ".tflite": (litert_runtime, ("ai_edge_litert",)),
    ".onnx": (onnx_runtime, ("onnx", "onnxruntime")),
}


@dataclass(frozen=True)
class Encoder:
    """A frozen encoder that was opened, and the layers of it that are wanted.

    `given` is its path in trial configs; `kept` has each layer by its text there. `read` returns
    the content of the file, which has the SHA-256 `sha256`.
    """

    given: str
    suffix: str
    sha256: str
    name: str
    licence: str
    settings: EncoderSettings
    input_shape: tuple[int, ...]
    kept: tuple[tuple[str, KeptLayer], ...]
    path: Path = field(compare=False)
    read: Callable[[], bytes] = field(compare=False, repr=False)

    def layer(self, text: str) -> KeptLayer:
        """Return the layer that a config calls `text`."""
        return dict(self.kept)[text]

    @property
    def line(self) -> str:
        """Return name, hash and licence in one line."""
        return f"{self.name}, SHA-256 {self.sha256[:12]}…, licence: {self.licence}"

    @property
    def settings_sha256(self) -> str:
        """Return the SHA-256 of the settings, from the file and the YAML beside it."""
        return hashlib.sha256(json.dumps(identity(self.settings)).encode()).hexdigest()

    @property
    def identity(self) -> str:
        """Return the SHA-256 of what the frames depend on: file, settings and wanted layers."""
        layers = [[text, kept.layer.index, kept.axes] for text, kept in self.kept]
        content = [self.sha256, identity(self.settings), layers]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def session(self, layers: Sequence[KeptLayer]) -> Callable[[Any], list[Any]]:
        """Return a function from an input to the values of `layers`, for one thread."""
        runtime = runtime_of(self.suffix, self.given)
        run: Callable[[Any], list[Any]] = runtime.session(
            self.read(), [kept.layer for kept in layers], self.input_shape
        )
        return run


def open_encoders(front_ends: Iterable[Any]) -> tuple[Encoder, ...]:
    """Open the encoders of those of `front_ends` that have one, with the layers that they name.

    Raises `UserError` for a file or a layer that cannot be used.
    """
    wanted = dict[str, dict[str, None]]()
    for front_end in front_ends:
        if isinstance(front_end, EncoderFrontEnd):
            wanted.setdefault(front_end.encoder, {})[front_end.layer] = None
    return tuple(open_encoder(given, tuple(layers)) for given, layers in wanted.items())


def merge_encoders(encoders: Iterable[Encoder]) -> Encoder:
    """Return one of `encoders`, which were opened from one file, with the layers of all."""
    first, *others = encoders
    kept = {text: layer for encoder in (first, *others) for text, layer in encoder.kept}
    return dataclasses.replace(first, kept=tuple(kept.items()))


def open_encoder(given: str, layers: Sequence[str] = (LAST,)) -> Encoder:
    """Open the encoder at the path `given`; a process opens each file and layer once.

    Raises `UserError` with one line for a file that is missing, damaged, or of another kind, a
    layer that is not there, or a library that is not installed.
    """
    path = user_path(given).absolute()
    try:
        stamps = tuple(
            (p.stat().st_mtime_ns, p.stat().st_size) if p.exists() else None
            for p in (path, sidecar_path(path))
        )
        return _open(given, path, tuple(layers), stamps)
    except OSError as error:
        raise UserError(
            f"encoder '{shorten(given, 200)}' cannot be read: {error.strerror}"
        ) from error


def sidecar_path(path: Path) -> Path:
    """Return the path of the YAML with an encoder's settings, beside its file."""
    return path.with_suffix(".yaml")


@functools.lru_cache(maxsize=64)
def _open(given: str, path: Path, layers: tuple[str, ...], _stamps: object) -> Encoder:
    where = f"encoder '{shorten(given, 200)}'"
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "no file" if path.exists() else "not there"
        raise UserError(f"{where} is {kind}: give the path of a .tflite or .onnx file, or none")
    suffix = path.suffix.lower()
    runtime = runtime_of(suffix, given)
    content = path.read_bytes()
    try:
        if not content:
            raise UserError("it is empty")
        graph: Graph = runtime.read_graph(content)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    sidecar = _sidecar(given, sidecar_path(path), graph)
    try:
        settings = check_input(graph.input_shape, sidecar, graph.default_layout)
        texts = {text: sidecar.last or LAST if text == LAST else text for text in layers}
        found = {text: find_layer(graph, name) for text, name in texts.items()}
        distinct = list(dict.fromkeys(found.values()))
        noise = np.random.default_rng(0).normal(0, 0.1 * settings.scale, settings.window)
        values, shape = shaped_input(noise.astype(np.float32), graph, settings)
        outputs = _first_run(runtime, content, distinct, shape, values)
        layouts = settings.layout
        kept = {
            layer: kept_layer(layer, output.shape, layouts)
            for layer, output in zip(distinct, outputs, strict=True)
        }
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    digest = hashlib.sha256(content).hexdigest()
    return Encoder(
        given,
        suffix,
        digest,
        one_line(sidecar.name or path.stem),
        one_line(sidecar.licence or UNKNOWN_LICENCE),
        settings,
        shape,
        tuple((text, kept[layer]) for text, layer in found.items()),
        path,
        partial(read_unchanged, path, digest),
    )


def _first_run(
    runtime: ModuleType, content: bytes, layers: Sequence[Any], shape: Any, values: Any
) -> list[Any]:
    """Return the values of `layers` for one window, which must be finite."""
    try:
        outputs = list(runtime.session(content, layers, shape)(values))
    except UserError:
        raise
    except Exception as error:  # onnxruntime's classes derive from Exception alone
        raise UserError(
            f"it fails on a window of {len(values.ravel())} values "
            f"({shorten(str(error), 120)}): set window in the YAML beside the file"
        ) from error
    for layer, output in zip(layers, outputs, strict=True):
        if not np.isfinite(output).all():
            raise UserError(
                f"encoder_layer {layer.index} '{shorten(layer.name)}' gives values that are not "
                "finite: choose another layer or file"
            )
    return outputs


def _sidecar(given: str, path: Path, graph: Graph) -> SidecarFile:
    """Return the settings in the YAML beside the file, over those in the file's metadata."""
    facts: dict[str, Any] = {}
    for key, text in graph.facts:
        if key in ("name", "licence", "license"):
            facts["licence" if key == "license" else key] = text
        elif key in ("rate", "window", "hop", "level", "scale"):
            try:
                facts[key] = int(text) if text.strip().isdigit() else float(text)
            except ValueError as error:
                raise UserError(
                    f"encoder '{shorten(given, 200)}': its metadata has {key} {shorten(text)!r}, "
                    "which is not a number"
                ) from error
    if not path.exists():
        if others := [name for name in _mistaken_names(given) if path.with_name(name).exists()]:
            raise UserError(
                f"encoder settings '{shorten(others[0], 80)}' have the wrong name and are not "
                f"read: rename the file to '{shorten(path.name, 80)}'"
            )
        return read_sidecar(f"encoder '{shorten(given, 200)}', metadata", facts)
    from resp_tune.common.yaml_files import read_yaml

    where = f"encoder settings '{path.name}'"
    values = read_yaml(where, path)
    if isinstance(values, dict):
        values = {**facts, **values}
    return read_sidecar(where, facts if values is None else values)


def _mistaken_names(given: str) -> list[str]:
    """Return names that are easily given to the YAML beside an encoder, and are not its name."""
    file = Path(given)
    return [f"{file.stem}.yml", f"{file.name}.yaml", f"{file.name}.yml"]


def runtime_of(suffix: str, given: str) -> ModuleType:
    """Return what runs files of this kind; raise `UserError` for another kind, or without it."""
    if suffix not in RUNTIMES:
        raise UserError(
            f"encoder '{shorten(given, 200)}' is not a .tflite or .onnx file: export it as one "
            "of them (docs/encoders.md)"
        )
    module, libraries = RUNTIMES[suffix]
    if missing := [name for name in libraries if importlib.util.find_spec(name) is None]:
        raise UserError(
            f"encoder '{shorten(given, 200)}' needs {' and '.join(missing)}, not installed here: "
            f"{EXTRA}"
        )
    return module


def read_unchanged(path: Path, digest: str) -> bytes:
    """Return the content of a file; raise `RunError` if it is gone or has another SHA-256."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RunError(
            f"encoder '{path}' cannot be read ({error.strerror}): restore it and rerun the command"
        ) from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise RunError(
            f"encoder '{path}' has changed since this command began: restore it and rerun the "
            "command, or give the search another --name"
        )
    return content
