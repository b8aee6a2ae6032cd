"""Open a winner from a folder, an object store or MLflow's registry."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from resp_tune.common.paths import user_path
from resp_tune.errors import UserError
from resp_tune.storage.object_store import LARGEST, ObjectPath, StorageError, is_uri
from resp_tune.storage.storage_probe import check_place

if TYPE_CHECKING:
    from resp_tune.training.model_bundle import Bundle

CHAMPION = "models:/resp_tune@champion"
BUNDLE = ("config.json", "weights.safetensors")


def open_winner(winner: str, tracking_uri: str | None) -> Bundle:
    """The bundle in a folder or in MLflow's registry."""
    from resp_tune.training.model_bundle import load_bundle

    if not winner.startswith("models:/"):
        return _fetched(winner) if is_uri(winner) else load_bundle(user_path(winner))
    from resp_tune.tracking.registry import fetch_bundle
    from resp_tune.tracking.uri import resolve_uri

    with tempfile.TemporaryDirectory(prefix="resp_tune_") as folder:
        uri = resolve_uri(tracking_uri, Path("results").absolute())
        return load_bundle(fetch_bundle(winner, uri, Path(folder)))


def _fetched(winner: str) -> Bundle:
    """The bundle in an object store."""
    from resp_tune.training.model_bundle import load_bundle

    place = ObjectPath.parse("--winner", winner)
    check_place("--winner", place, write=False)
    with tempfile.TemporaryDirectory(prefix="resp_tune_") as scratch:
        folder = Path(scratch) / "winner"
        try:
            there = [place.fetch(file, folder / file, LARGEST) for file in BUNDLE]
        except StorageError as error:
            raise UserError(f"--winner '{place}' cannot be read ({error})") from error
        if not all(there):
            raise UserError(
                f"--winner '{place}' is no winner: it lacks {' or '.join(BUNDLE)}; give "
                "s3://BUCKET/PREFIX/NAME/winner of a search that has ended"
            )
        return load_bundle(folder)
