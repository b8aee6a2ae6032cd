"""A data set in an object store, as a folder of this machine's cache."""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from filelock import FileLock

from resp_tune.common.paths import cache_folder, full_disk_in_one_line
from resp_tune.errors import UserError
from resp_tune.storage.object_store import ObjectPath, StorageError
from resp_tune.storage.storage_probe import check_store

log = logging.getLogger(__name__)

AT_ONCE = 16  # small files wait for the network, not for each other


def fetched(uri: str) -> Path:
    """The folder with the files below `uri`, those fetched that are new or have changed there.

    A file is known by its size and by the time at which it was put. `UserError` where the store
    cannot be read, or has nothing there.
    """
    place = ObjectPath.parse("--data", uri)
    check_store("--data", place, write=False)
    folder = cache_folder() / "datasets" / place.local_copy.name / (PurePosixPath(str(place)).name)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(".lock")), full_disk_in_one_line(folder):
        try:
            there = {name: found for name, found in place.list_objects().items() if _inside(name)}
            if not there:
                raise UserError(
                    f"--data '{place}': nothing is there: give the prefix of a data set"
                )
            wanted = [name for name, found in there.items() if _found(folder / name) != found]
            with ThreadPoolExecutor(AT_ONCE) as pool:
                list(pool.map(lambda name: _fetch(place, name, folder, there[name][1]), wanted))
        except StorageError as error:
            raise UserError(f"--data '{place}' cannot be read: {error}") from None
        for path in folder.rglob("*"):
            if path.is_file() and str(path.relative_to(folder)) not in there:
                path.unlink()
    size = sum(there[name][0] for name in wanted)
    log.info(
        f"data: {len(wanted)} of {len(there)} files fetched from {place}, {size / 1e6:,.1f} MB"
    )
    return folder


def _inside(name: str) -> bool:
    """Whether an object's name is that of a file below the folder, and of no other place."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts


def _found(path: Path) -> tuple[int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns


def _fetch(place: ObjectPath, name: str, folder: Path, put: int) -> None:
    if (place / name).fetch("", folder / name):
        os.utime(folder / name, ns=(put, put))
