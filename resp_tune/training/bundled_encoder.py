"""The encoder of a bundle: a copy of its file, and the YAML beside it with what it wants to hear.

`encoder.tflite` or `encoder.onnx`, and `encoder.yaml`; `config.json` holds the hashes of both.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resp_tune.common.paths import cache_folder, write_atomically
from resp_tune.config import TrialConfig
from resp_tune.encoders.encoder_file import (
    RUNTIMES,
    Encoder,
    open_encoder,
    runtime_of,
    sidecar_path,
)
from resp_tune.encoders.encoder_settings import UNKNOWN_LICENCE
from resp_tune.errors import RunError, UserError

SETTINGS = "encoder.yaml"
ENCODERS = tuple(f"encoder{suffix}" for suffix in RUNTIMES)


def describe_encoder(encoder: Encoder) -> dict[str, str]:
    """Return `{name, sha256, licence}`, as a bundle, a summary and MLflow have them."""
    return {"name": encoder.name, "sha256": encoder.sha256, "licence": encoder.licence}


def save_encoder(folder: Path, encoder: Encoder | None) -> dict[str, Any]:
    """Write a bundle's encoder, or remove that of an earlier one; return its part of the config.

    The settings are those of its own YAML, with the name that follows from its path otherwise.
    Raises `RunError` if they or the file have changed since the encoder was opened.
    """
    file = None if encoder is None else f"encoder{encoder.suffix}"
    for name in {*ENCODERS, SETTINGS} - ({file, SETTINGS} if file else set()):
        (folder / name).unlink(missing_ok=True)
    if encoder is None or file is None:
        return {}
    from resp_tune.common.yaml_files import read_yaml  # needs more than a bare host has

    data = encoder.read()
    now = open_encoder(str(encoder.path), tuple(text for text, _ in encoder.kept))
    if now.identity != encoder.identity:
        raise RunError(
            f"the encoder '{encoder.given}', or the YAML beside it, has changed since this command "
            "began: restore it and rerun the same command"
        )
    sidecar = sidecar_path(encoder.path)
    settings = read_yaml(f"encoder settings '{sidecar.name}'", sidecar) if sidecar.is_file() else {}
    named = {"name": encoder.name, "licence": encoder.licence}
    if encoder.licence == UNKNOWN_LICENCE:
        del named["licence"]
    text = (json.dumps({**(settings or {}), **named}, indent=1) + "\n").encode()  # JSON is YAML
    write_atomically(folder / file, data)
    write_atomically(folder / SETTINGS, text)
    entry = {"file": file, **describe_encoder(encoder)}
    return {"encoder": entry | {"settings_sha256": hashlib.sha256(text).hexdigest()}}


def check_runtime(folder: Path, content: Mapping[str, Any]) -> None:
    """Raise `UserError` if the library that runs the encoder of a bundle is not installed."""
    entry = content.get("encoder")
    if isinstance(entry, dict) and entry.get("file") in ENCODERS:
        runtime_of(Path(entry["file"]).suffix, str(folder / entry["file"]))


def load_encoder(
    folder: Path, content: Mapping[str, Any], layers: Sequence[str], *, copy: bool
) -> Encoder:
    """Open the encoder of the bundle in `folder`, whose config is `content`, for some `layers`.

    `copy`: the folder will be gone, so the encoder is kept in the cache folder, by its hash. Raises
    `UserError` if a file of it is missing or damaged, `ValueError` if the config does not say which
    it is.
    """
    entry = content.get("encoder")
    if not isinstance(entry, dict) or entry.get("file") not in ENCODERS:
        raise ValueError("its config names no encoder")
    names = {str(entry["file"]): entry.get("sha256"), SETTINGS: entry.get("settings_sha256")}
    files = {name: _read(folder / name, digest) for name, digest in names.items()}
    if copy:
        both = hashlib.sha256("".join(map(str, names.values())).encode()).hexdigest()
        folder = cache_folder() / "encoders" / both[:24]
        folder.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            write_atomically(folder / name, data)
    return open_encoder(str((folder / str(entry["file"])).absolute()), tuple(dict.fromkeys(layers)))


def _read(path: Path, digest: object) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise UserError(f"'{path}' is damaged: its hash is not the one in config.json")
    return data


def count_features(config: TrialConfig, encoder: Encoder) -> int:
    """Return how many features a clip has by the encoder of `config`."""
    frame = encoder.layer(config.encoder_layer).dim
    return frame * len(config.front_ends) * (2 if config.encoder_pool == "mean+sd" else 1)
