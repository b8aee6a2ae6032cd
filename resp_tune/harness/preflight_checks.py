"""Try all that a search needs of its surroundings, before anything is started or written.

`CHECKS` is the list: folders, rights, limits, environment variables and servers. A new need is a
new entry; tests/test_preflight_checks.py has a case that breaks each of them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass

from resp_tune.cluster import limits, ray_internals
from resp_tune.cluster.local_ray import check_login, check_ray_folder, ray_folder
from resp_tune.cluster.resources import Machine
from resp_tune.common.file_systems import check_disk, check_flock, check_sqlite
from resp_tune.common.paths import cache_folder, cache_limit_bytes, folder_to_write
from resp_tune.errors import UserError
from resp_tune.harness.spec import SearchData, SearchLocation
from resp_tune.storage.object_store import ObjectPath, check_store
from resp_tune.tracking.mlflow_internals import check_variables
from resp_tune.tracking.store_probe import probe
from resp_tune.tracking.uri import sqlite_file

CACHE_ELSEWHERE = "set RESP_TUNE_CACHE to a folder of your own"
STORAGE_ELSEWHERE = "give another --storage"
MIN_RESULTS = 100_000_000  # bytes of disk for the files of a search and MLflow's database


@dataclass(frozen=True)
class Start:
    """What the checks know of a search that is about to start.

    `store` is the object store of `--storage`, if it is one. `private_ray`: whether the search
    starts a Ray on this machine. `data` is None until it has been read.
    """

    location: SearchLocation
    store: ObjectPath | None
    machine: Machine
    private_ray: bool
    data: SearchData | None = None


@dataclass(frozen=True)
class Check:
    """A need of a search. `check` raises `UserError` if it is not met, and leaves nothing behind.

    `of_ray`: only for a search that starts its own Ray. `of_data`: only once the data is known.
    """

    name: str
    check: Callable[[Start], object]
    of_ray: bool = False
    of_data: bool = False


def run_checks(start: Start) -> None:
    """Raise `UserError` for the first need of the search that is not met.

    Called twice: before the data set is read, and after it.
    """
    for entry in CHECKS:
        if entry.of_data == (start.data is not None) and (start.private_ray or not entry.of_ray):
            entry.check(start)


def _check_temporary(_start: Start) -> None:
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        raise UserError(
            f"no temporary folder can be written ({error.strerror}): set TMPDIR to one that can"
        ) from error


def _check_storage(start: Start) -> None:
    storage = start.location.storage
    if start.store is not None:
        folder_to_write("the cache folder for --storage", str(storage), CACHE_ELSEWHERE)
        check_store("--storage", start.store)
        return
    folder_to_write("--storage", str(storage))
    default = sqlite_file(start.location.tracking_uri) == storage / "mlflow.db"
    if default and set("?#%") & set(str(storage)):
        raise UserError(
            f"--storage '{storage}': MLflow's database cannot be in a folder with ?, # or % in its "
            "path: give another folder, or --tracking-uri"
        )


def _check_search_folder(start: Start) -> None:
    """Refuse a name that is a file or MLflow's, and files of the search that others own."""
    location = start.location
    folder, storage = location.folder, location.storage
    reserved = {sqlite_file(location.tracking_uri), storage / "mlflow.db", storage / "mlartifacts"}
    if folder in reserved or (folder.exists() and not folder.is_dir()):
        raise UserError(
            f"--name '{location.name}' clashes with '{folder}', which is a file or belongs to "
            "MLflow: give another name"
        )
    folder_to_write("--name", str(folder), "give another name, or make it writable")
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not path.is_symlink() and not os.access(path, os.R_OK | os.W_OK):
            raise UserError(
                f"--name '{location.name}': '{path}' may not be written: give another name, or "
                "make it writable (it may belong to another user)"
            )


def check_cache_folder() -> None:
    """Raise `UserError` if feature caches and baselines cannot be written."""
    flag = "RESP_TUNE_CACHE" if os.environ.get("RESP_TUNE_CACHE") else "the cache folder"
    root = cache_folder()
    for folder in (root, *(root / name for name in ("features", "baselines", "sounds"))):
        folder_to_write(flag, str(folder), CACHE_ELSEWHERE)
    check_flock(flag, root / "features", CACHE_ELSEWHERE)


def _check_frames(start: Start) -> None:
    """Refuse to fill feature caches for which there is no space, or that others own."""
    data, root, needed = start.data, cache_folder() / "features", 0
    if data is None:
        return
    for front_end in data.prefilled:
        folder = data.caches.folder(front_end)
        for path in (folder.with_suffix(".lock"), folder, folder / "index.json"):
            if path.exists() and not os.access(path, os.R_OK | os.W_OK):
                raise UserError(
                    f"the cache's '{path}' may not be written (it may belong to another user): "
                    f"{CACHE_ELSEWHERE}"
                )
        if not folder.exists():
            needed += (size := data.caches.expected_bytes(data.seconds, front_end))
            limits.check_file_size(size)
    check_disk("the cache folder", root, needed, CACHE_ELSEWHERE)


CHECKS = (
    Check("temporary folder", _check_temporary),
    Check("cache limit", lambda start: cache_limit_bytes()),
    Check("cache folder", lambda start: check_cache_folder()),
    Check("storage", _check_storage),
    Check("search folder", _check_search_folder),
    Check(
        "databases",
        lambda start: check_sqlite("--storage", start.location.storage, STORAGE_ELSEWHERE),
    ),
    Check(
        "disk of the storage",
        lambda start: check_disk(
            "--storage", start.location.storage, MIN_RESULTS, STORAGE_ELSEWHERE
        ),
    ),
    Check("MLflow's variables", lambda start: check_variables()),
    Check("tracking store", lambda start: probe(start.location.tracking_uri)),
    Check("Ray's variables", lambda start: ray_internals.check_variables()),
    Check("Ray's folder", lambda start: check_ray_folder(), of_ray=True),
    Check("Ray's login", lambda start: check_login(), of_ray=True),
    Check("object store", lambda start: limits.check_object_store(ray_folder()), of_ray=True),
    Check("loopback", lambda start: limits.check_loopback(), of_ray=True),
    Check("processes", lambda start: limits.check_processes(start.machine.cpus), of_ray=True),
    Check("open files", lambda start: limits.check_open_files(start.machine.cpus), of_ray=True),
    Check("file size", lambda start: limits.check_file_size(limits.OBJECT_STORE), of_ray=True),
    Check("address space", lambda start: limits.check_address_space(), of_ray=True),
    Check("feature caches", _check_frames, of_data=True),
)
