"""Open a winner from a folder, an object store or MLflow's registry."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from resp_tune.common.paths import user_path
from resp_tune.errors import UserError
from resp_tune.storage.object_store import LARGEST, ObjectPath, StorageError, check_store, is_uri

if TYPE_CHECKING:
    from resp_tune.training.model_bundle import Bundle

CHAMPION = "models:/resp_tune@champion"
BUNDLE = ("config.json", "weights.safetensors")


def open_winner(winner: str, tracking_uri: str | None) -> Bundle:
    """Return the bundle in a folder, in an object store or in MLflow's registry."""
    from resp_tune.training.model_bundle import load_bundle

    if not winner.startswith("models:/"):
        return _download(winner) if is_uri(winner) else load_bundle(user_path(winner))
    from resp_tune.tracking.registry import fetch_bundle
    from resp_tune.tracking.uri import resolve_uri

    with tempfile.TemporaryDirectory(prefix="resp_tune_") as folder:
        uri = resolve_uri(tracking_uri, Path("results").absolute())
        return load_bundle(fetch_bundle(winner, uri, Path(folder)))


def _download(winner: str) -> Bundle:
    """Return the bundle in an object store."""
    from resp_tune.training.model_bundle import load_bundle

    source = ObjectPath.parse("--winner", winner)
    check_store("--winner", source, write=False)
    with tempfile.TemporaryDirectory(prefix="resp_tune_") as scratch:
        folder = Path(scratch) / "winner"
        try:
            there = [source.fetch(file, folder / file, LARGEST) for file in BUNDLE]
        except StorageError as error:
            raise UserError(f"--winner '{source}' cannot be read ({error})") from error
        if not all(there):
            raise UserError(
                f"--winner '{source}' is not a winner: it lacks {' or '.join(BUNDLE)}; give "
                "s3://BUCKET/PREFIX/NAME/winner of a finished search"
            )
        return load_bundle(folder)
