"""Find the files of a registered model, wherever its store was moved to.

The bundle of a winner is the folder `artifacts/winner` of the logged model.
"""

from __future__ import annotations

import logging
import re
import shlex
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from resp_tune.errors import RunError, UserError
from resp_tune.tracking.moved_store import beside, local_folder
from resp_tune.tracking.tags import Tag
from resp_tune.tracking.uri import sqlite_file

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

log = logging.getLogger(__name__)

BUNDLE = "artifacts/winner"  # `served_model.ARTIFACT` names the same
_LOGGED = re.compile(r"models:/(m-\w+)")
_MOST_BYTES = 1 << 30
# Of a bundle; `training/bundled_encoder.py` names those of its encoder.
_NAMES = re.compile(r"config\.json|[\w.-]+\.safetensors|encoder\.(tflite|onnx|yaml)")


def bundle_files(bundle: Path) -> list[Path]:
    """Return the files in a folder that belong to a bundle."""
    return sorted(path for path in bundle.iterdir() if _NAMES.fullmatch(path.name))


def check_size(bundle: Path) -> None:
    """Raise `RunError` if a bundle is too large to be fetched again once it is registered."""
    size = sum(path.stat().st_size for path in bundle_files(bundle))
    if size > _MOST_BYTES:
        raise RunError(
            f"the winner could not be registered: '{bundle}' has {size / 1e9:.1f} GB, and a model "
            f"may have {_MOST_BYTES / 1e9:.1f} GB; give a smaller --ensemble"
        )


def model_folder(client: MlflowClient, uri: str, version: ModelVersion) -> Path | None:
    """Return the folder on this machine with a model's files; None if they are elsewhere.

    Beside an sqlite store it is looked for below the store first: the store may have been moved.
    """
    address = _address(client, version)
    recorded, store = local_folder(address), sqlite_file(uri)
    moved = None if store is None else beside(store, address)
    return moved if moved is not None and moved.is_dir() else recorded


def _address(client: MlflowClient, version: ModelVersion) -> str:
    return str(client.get_model_version_download_uri(version.name, version.version))


def bundle_sizes(client: MlflowClient, uri: str, version: ModelVersion) -> dict[str, int | None]:
    """Return the sizes of a registered bundle's files by name, None where a store tells no size.

    Empty if the model was deleted, its files are gone, or it is not a bundle.
    """
    from mlflow.artifacts import list_artifacts
    from mlflow.exceptions import MlflowException

    try:
        if _is_deleted(client, version):
            return {}
        folder = model_folder(client, uri, version)
        if folder is not None:
            files = (path for path in (folder / BUNDLE).glob("*") if path.is_file())
            sizes: dict[str, int | None] = {path.name: path.stat().st_size for path in files}
        else:
            address = f"models:/{version.name}/{version.version}/{BUNDLE}"
            entries = [entry for entry in list_artifacts(address) if not entry.is_dir]
            sizes = {PurePosixPath(entry.path).name: entry.file_size for entry in entries}
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return {}
        raise
    return {name: size for name, size in sizes.items() if _NAMES.fullmatch(name)}


def _is_deleted(client: MlflowClient, version: ModelVersion) -> bool:
    """Return whether a version's logged model was deleted, which leaves the version as it was."""
    from mlflow.exceptions import MlflowException

    logged = _LOGGED.fullmatch(version.source or "")
    try:
        if logged:
            client.get_logged_model(logged[1])
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return True
        raise
    return False


def holds(sizes: Mapping[str, int | None], bundle: Path) -> bool:
    """Return whether `bundle_sizes` are those of the files in the folder `bundle`."""
    own = {p.name: p.stat().st_size for p in bundle_files(bundle)}
    return bool(own) and all(sizes.get(name, -1) in (size, None) for name, size in own.items())


def fetch_files(client: MlflowClient, uri: str, version: ModelVersion, scratch: str) -> list[Path]:
    """Return the files of a registered bundle, downloaded to `scratch` unless they are here.

    Raises `UserError` if they are gone, or not those of a bundle.
    """
    from mlflow.artifacts import download_artifacts

    model, sizes = f"models:/{version.name}/{version.version}", bundle_sizes(client, uri, version)
    if not sizes:
        raise UserError(_gone(client, uri, version))
    if "config.json" not in sizes or len(sizes) < 2:
        raise UserError(f"'{model}' is not a winner of resp_tune: it holds no bundle")
    if sum(size or 0 for size in sizes.values()) > _MOST_BYTES:
        raise UserError(f"'{model}' is larger than a bundle can be: give another model")
    folder = model_folder(client, uri, version)
    if folder is not None:
        if folder != (old := local_folder(_address(client, version))):
            log.info(f"the MLflow store was moved: '{model}' is read from '{folder}', not '{old}'")
        return [folder / BUNDLE / name for name in sorted(sizes)]
    names = (f"{model}/{BUNDLE}/{name}" for name in sorted(sizes))
    return [Path(download_artifacts(name, dst_path=scratch)) for name in names]


def _gone(client: MlflowClient, uri: str, version: ModelVersion) -> str:
    """Return why a registered model has no files, and what to give instead."""
    model, store = f"models:/{version.name}/{version.version}", sqlite_file(uri)
    address = _address(client, version)
    folders = [store and beside(store, address), local_folder(address)]
    places = list(dict.fromkeys(map(str, filter(None, folders)))) or [address]
    if Tag.WEIGHTS not in version.tags:
        return f"'{model}' is not a winner of resp_tune: it holds no bundle"
    reason = f"its files are not in {' or '.join(map(repr, places))}"
    if _is_deleted(client, version):
        reason = "its logged model was deleted in MLflow"
    winner = Path(version.tags.get(Tag.SEARCH, "NAME"), "winner")
    if store is not None and (store.parent / winner).is_dir():
        winner = store.parent / winner
    return (
        f"'{model}' is registered, but {reason}: give --winner {shlex.quote(str(winner))}, the "
        "folder of its search, or rerun the search's command, which registers it again"
    )
