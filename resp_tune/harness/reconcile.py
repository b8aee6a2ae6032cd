"""Two copies of a search, here and in an object store: which one goes on.

Each run of the command adds a name to the study's list of drivers, so that a copy says who wrote
it. The store's copy is the search, unless it is an earlier state of the one here: then the last
driver ran on this disk, which may hold what did not go up before it was killed. A count of trials
would not do: two machines may each have some that the other lacks.
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
CHECKED = (STUDY, "split.json", "recordings.json")  # what a continued search is held against
LOCAL = (".lock", ".held_by", ".lease")  # what a folder does not share
REPLACED = ".replaced"  # beside the searches' folders: copies that gave way


@contextmanager
def search_state(remote: ObjectPath | None, folder: Path) -> Iterator[Path]:
    """A folder with the files that a search is checked by, as they stand now; changes nothing.

    `folder` itself, or one for the moment.
    """
    if remote is None:
        yield folder
        return
    with _fetched(remote, folder.name, CHECKED) as fetched:
        yield fetched if fetched is not None and _gives_way(folder, fetched) else folder


def download_search(remote: ObjectPath, folder: Path) -> None:
    """Let `folder` be the search as it stands; the caller holds its lock, and the lease.

    Trials' own files stay where they are; each is fetched when it is wanted.
    """
    with _fetched(remote, folder.name, (STUDY,)) as fetched:
        if fetched is None:
            if (folder / STUDY).exists():
                log.info(
                    f"nothing is left at '{remote}': this machine's copy '{folder}' goes on, and "
                    "goes up again (to begin anew, remove that folder)"
                )
        elif not _gives_way(folder, fetched):
            _keep_readings(fetched, folder)
        else:
            _replace(remote, folder, fetched)


def _replace(remote: ObjectPath, folder: Path, fetched: Path) -> None:
    try:
        of_this = _attributes(folder).get(STUDY_ID) == _attributes(fetched)[STUDY_ID]
    except UserError:  # damaged
        of_this = False
    if of_this:
        _keep_readings(folder, fetched)
    elif kept := _aside(folder):
        log.info(
            f"this machine's copy is not of the search at '{remote}': it was moved to '{kept}'"
        )
    with report_storage_errors(remote):
        for name in filter(_belongs, remote.list_sizes()):
            remote.fetch(name, folder / name, LARGEST)
    for journal in folder.glob(f"{STUDY}-*"):  # of the study that was here; it would be applied
        journal.unlink()
    # Last: a folder with the old one is fetched again.
    write_atomically(folder / STUDY, (fetched / STUDY).read_bytes())


def _belongs(name: str) -> bool:
    """Whether an object is a file of the search, but for the study; its name may be anybody's."""
    parts = name.split("/")
    known = len(parts) == 1 or (len(parts) == 2 and parts[0] == "winner")
    return known and name != STUDY and all(p and not p.startswith(".") for p in parts)


def _gives_way(folder: Path, fetched: Path) -> bool:
    """Whether the copy in `folder` is not there, or not a later state of the fetched one."""
    there = _attributes(fetched).get(DRIVERS, [])
    if not (folder / STUDY).exists():
        return True
    try:
        here = _attributes(folder).get(DRIVERS, [])
    except UserError:  # damaged
        return True
    return bool(here[: len(there)] != there)


def _attributes(folder: Path) -> dict[str, Any]:
    """The attributes of the study; {} where there is none that can be read."""
    if not (folder / STUDY).exists():
        return {}
    return dict(read_study(folder / STUDY, folder.name).user_attrs)


def _keep_readings(of: Path, into: Path) -> None:
    """No reading of the test side is forgotten, whichever copy goes on."""
    readings = _attributes(into).get(READINGS, [])
    known = readings
    for reading in _attributes(of).get(READINGS, []):
        known = add_access(known, reading)
    if known != readings:
        read_study(into / STUDY, into.name).set_user_attr(READINGS, known)


def _aside(folder: Path) -> Path | None:
    """Move what `folder` holds to where it is in nobody's way; None where it holds nothing."""
    content = [path for path in folder.iterdir() if path.name not in LOCAL]
    if not content:
        return None
    (folder.parent / REPLACED).mkdir(exist_ok=True)
    prefix = f"{folder.name}-{time.strftime('%Y%m%d-%H%M%S')}-"
    to = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent / REPLACED))
    for path in content:
        path.rename(to / path.name)
    return to


@contextmanager
def _fetched(remote: ObjectPath, name: str, files: tuple[str, ...]) -> Iterator[Path | None]:
    """A folder with `files` of the store, for the moment; None where it has no study."""
    with tempfile.TemporaryDirectory(prefix="resp_tune_") as scratch:
        folder = Path(scratch) / name
        with report_storage_errors(remote):
            found = [remote.fetch(file, folder / file, LARGEST) for file in files]
        if not found[0]:
            yield None
            return
        try:
            _attributes(folder)
        except UserError as error:
            raise UserError(str(error).replace(str(folder), str(remote))) from error
        yield folder


@contextmanager
def report_storage_errors(remote: ObjectPath) -> Iterator[None]:
    """Inside, a store that does not answer is a `UserError`."""
    try:
        yield
    except StorageError as error:
        raise UserError(
            f"'{remote}' cannot be read ({error}): type the command again when it can"
        ) from error
