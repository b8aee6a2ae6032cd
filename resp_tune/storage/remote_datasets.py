"""Fetch a data set from an object store into a folder of this machine's cache."""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

from filelock import FileLock

from resp_tune.common.paths import cache_folder, full_disk_in_one_line
from resp_tune.errors import UserError
from resp_tune.storage.object_store import ObjectPath, StorageError, check_store

log = logging.getLogger(__name__)

THREADS = 16  # small files wait for the network, not for each other


def fetch_dataset(uri: str) -> Path:
    """Return a folder with the files below `uri`, after fetching those that are new or changed.

    A file has changed if its size or its time of writing differs. `UserError` if the store cannot
    be read, or has nothing there.
    """
    source = ObjectPath.parse("--data", uri)
    check_store("--data", source, write=False)
    folder = cache_folder() / "datasets" / source.local_copy.name / PurePosixPath(str(source)).name
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(".lock")), full_disk_in_one_line(folder):
        try:
            objects = {n: o for n, o in source.list_objects().items() if _is_below(n)}
            if not objects:
                raise UserError(f"--data '{source}' has no objects: give the prefix of a data set")
            files = [path for path in folder.rglob("*") if path.is_file()]
            local = {path.relative_to(folder).as_posix(): path.stat() for path in files}
            states = {name: (stat.st_size, stat.st_mtime_ns) for name, stat in local.items()}
            changed = [name for name, state in objects.items() if states.get(name) != state]

            def fetch(name: str) -> None:
                if source.fetch(name, folder / name):
                    os.utime(folder / name, ns=(objects[name][1],) * 2)

            with ThreadPoolExecutor(THREADS) as pool:
                list(pool.map(fetch, changed))
        except StorageError as error:
            raise UserError(f"--data '{source}' cannot be read: {error}") from None
        for name in states.keys() - objects.keys():
            (folder / name).unlink()
    megabytes = sum(objects[name][0] for name in changed) / 1e6
    log.info(
        f"data: {len(changed)} of {len(objects)} files fetched from {source}, {megabytes:,.1f} MB"
    )
    return folder


def _is_below(name: str) -> bool:
    """Return whether a relative name is that of a file below the folder."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts
