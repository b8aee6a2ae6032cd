"""Decide which copy of a search is current: the one on this disk or the one in the object store.

Each run of the command adds an id to the study's list of drivers, so that a copy tells who wrote
it. The store's copy is current unless its list is the beginning of the local one: then the last
driver ran on this disk, which may hold what was not uploaded before it was killed. For example,
local [a, b] and remote [a]: local; local [a] and remote [a, b]: remote; local [a, c] and remote
[a, b]: remote. A count of trials would not do: two machines may each have some that the other
lacks.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from resp_tune.common.paths import write_atomically
from resp_tune.errors import UserError
from resp_tune.harness.test_access_log import add_access
from resp_tune.storage.object_store import LARGEST, ObjectPath, StorageError
from resp_tune.study.study import DRIVERS, READINGS, STUDY_ID, read_study

log = logging.getLogger(__name__)

STUDY = "study.db"
CHECKED = (STUDY, "split.json", "recordings.json")  # what a resumed search is compared with
LOCAL = (".lock", ".held_by", ".lease")  # files of a folder that are not part of the search
REPLACED = ".replaced"  # beside the searches' folders: local copies that were replaced


@contextmanager
def search_state(remote: ObjectPath | None, folder: Path) -> Iterator[Path]:
    """Yield a folder with the search's current state; change nothing.

    It is `folder`, or a temporary download if the store's copy is the current one.
    """
    if remote is None:
        yield folder
        return
    with _download(remote, folder.name, CHECKED) as copy:
        yield copy if copy is not None and _remote_is_current(folder, copy) else folder


def download_search(remote: ObjectPath, folder: Path) -> None:
    """Make `folder` the current copy; the caller holds its lock, and the lease.

    Files of trials are not touched; each is fetched when it is needed.
    """
    with _download(remote, folder.name, (STUDY,)) as copy:
        if copy is None:
            if (folder / STUDY).exists():
                log.info(
                    f"'{remote}' is empty: the search resumes from this machine's copy '{folder}', "
                    "which is uploaded again (to start over, remove that folder)"
                )
        elif _remote_is_current(folder, copy):
            _replace(remote, folder, copy)
        else:
            _merge_test_accesses(copy, into=folder)


def _replace(remote: ObjectPath, folder: Path, copy: Path) -> None:
    """Replace the files in `folder` by those of the store; `copy` holds the store's study."""
    try:
        same_search = _attributes(folder).get(STUDY_ID) == _attributes(copy)[STUDY_ID]
    except UserError:  # damaged
        same_search = False
    if same_search:
        _merge_test_accesses(folder, into=copy)
    elif backup := _move_aside(folder):
        log.info(f"'{folder}' held another search than '{remote}' and was moved to '{backup}'")
    with report_storage_errors(remote):
        for name in filter(_is_search_file, remote.list_sizes()):
            remote.fetch(name, folder / name, LARGEST)
    for journal in folder.glob(f"{STUDY}-*"):  # of the replaced study; it would be applied
        journal.unlink()
    # Last: if this is interrupted, the folder with the old study is replaced again.
    write_atomically(folder / STUDY, (copy / STUDY).read_bytes())


def _is_search_file(name: str) -> bool:
    """Return whether an object is a file of the search, other than its study; distrust names."""
    parts = name.split("/")
    known = len(parts) == 1 or (len(parts) == 2 and parts[0] == "winner")
    return known and name != STUDY and all(p and not p.startswith(".") for p in parts)


def _remote_is_current(folder: Path, copy: Path) -> bool:
    """Return whether the store's study in `copy` is current, and not the one in `folder`."""
    remote_drivers = _attributes(copy).get(DRIVERS, [])
    if not (folder / STUDY).exists():
        return True
    try:
        drivers = _attributes(folder).get(DRIVERS, [])
    except UserError:  # damaged
        return True
    return bool(drivers[: len(remote_drivers)] != remote_drivers)


def _attributes(folder: Path) -> dict[str, Any]:
    """Return the attributes of the study in `folder`, if there is one."""
    if not (folder / STUDY).exists():
        return {}
    return dict(read_study(folder / STUDY, folder.name).user_attrs)


def _merge_test_accesses(folder: Path, *, into: Path) -> None:
    """Copy the test-set accesses on record, so that none is lost whichever copy is current."""
    known = merged = _attributes(into).get(READINGS, [])
    for entry in _attributes(folder).get(READINGS, []):
        merged = add_access(merged, entry)
    if merged != known:
        read_study(into / STUDY, into.name).set_user_attr(READINGS, merged)


def _move_aside(folder: Path) -> Path | None:
    """Move the content of `folder` to a new folder and return that; None if it is empty."""
    content = [path for path in folder.iterdir() if path.name not in LOCAL]
    if not content:
        return None
    (folder.parent / REPLACED).mkdir(exist_ok=True)
    prefix = f"{folder.name}-{time.strftime('%Y%m%d-%H%M%S')}-"
    backup = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent / REPLACED))
    for path in content:
        path.rename(backup / path.name)
    return backup


@contextmanager
def _download(remote: ObjectPath, name: str, files: tuple[str, ...]) -> Iterator[Path | None]:
    """Yield a temporary folder with `files`, the study first; None if the store has no study."""
    with tempfile.TemporaryDirectory(prefix="resp_tune_") as scratch:
        folder = Path(scratch) / name
        with report_storage_errors(remote):
            fetched = [remote.fetch(file, folder / file, LARGEST) for file in files]
        if not fetched[0]:
            yield None
            return
        try:
            _attributes(folder)
        except UserError as error:
            raise UserError(str(error).replace(str(folder), str(remote))) from error
        yield folder


@contextmanager
def report_storage_errors(remote: ObjectPath) -> Iterator[None]:
    """Turn the error of a store that does not answer into a `UserError`."""
    try:
        yield
    except StorageError as error:
        raise UserError(
            f"'{remote}' cannot be read ({error}): rerun the same command when it can"
        ) from error
