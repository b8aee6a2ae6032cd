"""Try whether a file system has the locks and the free space that a search needs."""

from __future__ import annotations

import fcntl
import shutil
import sqlite3
import tempfile
from contextlib import closing
from pathlib import Path

from resp_tune.errors import UserError


def nearest_folder(path: Path) -> Path:
    """Return `path` or the nearest folder above it that exists."""
    return next(parent for parent in (path, *path.parents) if parent.is_dir())


def check_flock(flag: str, folder: Path, instead: str) -> None:
    """Raise `UserError` if files where `folder` is or will be have no `flock`.

    Some network file systems are mounted without it.
    """
    place = nearest_folder(folder)
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise UserError(
            f"{flag} '{folder}': files in '{place}' cannot be locked ({error.strerror}): "
            f"{instead}, or mount that file system with flock"
        ) from error


def check_sqlite(flag: str, folder: Path, instead: str) -> None:
    """Raise `UserError` if sqlite cannot keep a database where `folder` is or will be.

    It needs other locks than `flock`, which some network file systems lack.
    """
    place = nearest_folder(folder)
    try:
        with (
            tempfile.TemporaryDirectory(prefix=".resp_tune_", dir=place) as scratch,
            closing(sqlite3.connect(Path(scratch, "database"), timeout=5)) as database,
        ):
            database.execute("CREATE TABLE tried (x)")
    except (OSError, sqlite3.Error) as error:
        raise UserError(
            f"{flag} '{folder}': sqlite cannot keep a database in '{place}' ({error}): {instead}, "
            "or mount that file system with locks"
        ) from error


def check_disk(flag: str, folder: Path, needed: float, instead: str) -> None:
    """Raise `UserError` if the disk where `folder` is or will be has fewer than `needed` bytes."""
    if (free := shutil.disk_usage(nearest_folder(folder)).free) < needed:
        raise UserError(
            f"{flag} '{folder}' needs {needed / 1e6:,.0f} MB, and its disk has {free / 1e6:,.0f} "
            f"MB free: free some space, or {instead}"
        )
