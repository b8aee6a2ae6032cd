"""Find the artifacts of an MLflow store in a file that was moved, copied or mounted elsewhere.

MLflow keeps the absolute address of all artifacts in its database. Those of an sqlite store are in
`mlartifacts` beside it, so after a move they are there, and no longer where the database says.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from resp_tune.common.paths import can_write
from resp_tune.errors import UserError
from resp_tune.tracking.mlflow_internals import replace_addresses
from resp_tune.tracking.store_probe import EXPERIMENT, check_version, query_postgres, query_sqlite
from resp_tune.tracking.uri import is_server, sqlite_file

ARTIFACTS = "mlartifacts"
_TABLE = "SELECT 1 FROM sqlite_master WHERE name = 'experiments'"
_LOCATION = f"SELECT artifact_location FROM experiments WHERE name = '{EXPERIMENT}'"  # noqa: S608  # no input


def local_folder(address: str) -> Path | None:
    """Return the folder that an artifact address names on this machine, None for another kind."""
    parts = urlsplit(address)
    if not parts.scheme:
        return Path(address)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        return None
    return Path(unquote(parts.path))


def beside(store: Path, address: str) -> Path | None:
    """Return the folder beside the file `store` that has the part of `address` in `mlartifacts`.

    None if the address has no such part.
    """
    folder = local_folder(address)
    if folder is None or ARTIFACTS not in folder.parts:
        return None
    last = len(folder.parts) - 1 - folder.parts[::-1].index(ARTIFACTS)
    return store.parent.joinpath(*folder.parts[last:])


def recorded_location(uri: str) -> str | None:
    """Return where a database says that the artifacts of our experiment are, read-only.

    None for a server, and for a store without the experiment.
    """
    file = sqlite_file(uri)
    if is_server(uri) or (file is not None and not file.is_file()):
        return None
    check_version(uri)
    if file is not None and not query_sqlite(uri, file, _TABLE):
        return None
    rows = query_postgres(uri, _LOCATION) if file is None else query_sqlite(uri, file, _LOCATION)
    return str(rows[0][0]) if rows else None


def moved_to(uri: str, location: str) -> Path | None:
    """Return the folder beside the sqlite store `uri` that replaces `location` since a move.

    None if the artifacts are where the store says, or somewhere that a user chose.
    """
    file, old = sqlite_file(uri), local_folder(location)
    if file is None or old is None or old.name != ARTIFACTS:
        return None
    new, store = file.parent / ARTIFACTS, file.parent.resolve()
    if old.resolve() == new.resolve() or (old.is_dir() and old.resolve().is_relative_to(store)):
        return None
    return new


def relocate(uri: str, folder: Path | None = None) -> str | None:
    """Write the new addresses into an sqlite store that was moved; return the old location.

    None if it was not moved. New models then go to the new place, and MLflow itself finds the old
    ones there. The address of a file that is only at the old place stays. `folder`: where the store
    is, if `uri` is a copy of it.
    """
    location, file = recorded_location(uri), sqlite_file(uri)
    if location is None or file is None:
        return None
    original = file if folder is None else folder / file.name
    new = moved_to(f"sqlite:///{original}", location)
    if new is None:
        return None

    def replacement(address: str) -> str | None:
        here, there = beside(original, address), local_folder(address)
        if here is None or there is None or (there.exists() and not here.exists()):
            return None
        return new.as_uri() + address.removeprefix(location)

    replace_addresses(file, location, new.as_uri(), replacement)
    return location


def is_writable(file: Path) -> bool:
    """Return whether sqlite can write to an existing file, which needs a journal beside it."""
    return os.access(file, os.W_OK) and can_write(file.parent)


@contextmanager
def readable(uri: str) -> Iterator[str]:
    """Yield the URI of a store that MLflow can open for reading: `uri`, or that of a copy.

    MLflow cannot open an sqlite file that is not writable, such as one on a read-only mount.
    """
    file = sqlite_file(uri)
    if file is None or not file.is_file() or is_writable(file):
        yield uri
        return
    check_version(uri)
    with tempfile.TemporaryDirectory(prefix="resp_tune-store-") as scratch:
        try:
            for part in (file, *file.parent.glob(f"{file.name}-*")):  # with an unfinished journal
                shutil.copyfile(part, Path(scratch) / part.name)
        except OSError as error:
            raise UserError(
                f"the MLflow store '{error.filename}' cannot be read ({error.strerror}): make it "
                "readable, or give another --tracking-uri"
            ) from None
        yield f"sqlite:///{scratch}/{file.name}"
