"""Open a winner from a folder, an object store or MLflow's registry."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from resp_tune.common.choices import LARGEST_ENSEMBLE
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

    registered = winner.startswith("models:/")
    if not registered and not is_uri(winner):
        return load_bundle(user_path(winner))
    with tempfile.TemporaryDirectory(prefix="resp_tune_") as scratch:
        folder = Path(scratch)
        if not registered:
            return load_bundle(_download(winner, folder), temporary=True)
        from resp_tune.tracking.registry import fetch_bundle
        from resp_tune.tracking.uri import resolve_uri

        uri = resolve_uri(tracking_uri, Path("results").absolute())
        return load_bundle(fetch_bundle(winner, uri, folder), temporary=True)


def _download(winner: str, folder: Path) -> Path:
    """Fetch the bundle in an object store into `folder` and return it."""
    source = ObjectPath.parse("--winner", winner)
    check_store("--winner", source, write=False)
    try:
        there = [source.fetch(file, folder / file, LARGEST) for file in BUNDLE]
        left = LARGEST - sum(path.stat().st_size for path in folder.iterdir())
        for file in _further_files(folder) if all(there) else ():
            if source.fetch(file, folder / file, left):  # `load_bundle` says which is missing
                left -= (folder / file).stat().st_size
    except StorageError as error:
        raise UserError(f"--winner '{source}' cannot be read ({error})") from error
    if not all(there):
        raise UserError(
            f"--winner '{source}' is not a winner: it lacks {' or '.join(BUNDLE)}; give "
            "s3://BUCKET/PREFIX/NAME/winner of a finished search"
        )
    return folder


def _further_files(folder: Path) -> list[str]:
    """Return the files of an ensemble and of an encoder that the bundle's config names."""
    from resp_tune.training.bundled_encoder import ENCODERS, SETTINGS
    from resp_tune.training.model_bundle import MEMBER_WEIGHTS

    try:
        content = json.loads((folder / "config.json").read_bytes())
    except (ValueError, RecursionError):  # `load_bundle` says what is wrong with it
        return []
    if not isinstance(content, dict):
        return []
    members, entry = content.get("members"), content.get("encoder")
    count = len(members) if isinstance(members, list) else 1
    files = [MEMBER_WEIGHTS.format(n) for n in range(1, min(count, LARGEST_ENSEMBLE))]
    file = entry.get("file") if isinstance(entry, dict) else None
    return [*files, file, SETTINGS] if file in ENCODERS else files
