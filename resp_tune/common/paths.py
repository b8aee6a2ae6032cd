"""Where things are kept on this machine."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from resp_tune.errors import RunError, UserError

LONGEST_NAME = 255  # bytes of one name, on every common file system


def user_path(text: str) -> Path:
    """The path that was typed, `~` and `~user` being homes.

    Raises `UserError` where nobody has such a home, or no file can have such a name.
    """
    parts = [os.fsencode(part) for part in Path(text).parts]
    if "\0" in text or any(len(part) > LONGEST_NAME for part in parts):
        raise UserError(
            f"'{text[:40]}…' is not a path: a name in it holds NUL or over {LONGEST_NAME} bytes"
        )
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        home = Path(text).parts[0]
        raise UserError(
            f"'{text}': there is no home folder '{home}': give the whole path"
        ) from error


def folder_to_write(flag: str, given: str) -> Path:
    """The absolute path of a folder that can be made and written, or is there and can be.

    Tried with a folder that is removed at once: what permissions say does not bind everybody, nor
    does every file system heed them. `UserError` names `flag` where it cannot be.
    """
    if given == "":  # an unset variable of the shell: nobody types it
        raise UserError(f"{flag} '': give a folder")
    folder = place = user_path(given).absolute()
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{flag} {given!r}: Ray cannot use a path that is not UTF-8: give another folder, or "
            "set LC_ALL=C.UTF-8 where it is"
        ) from error
    try:
        place = next(p for p in (folder, *folder.parents) if p.exists())
        if not place.is_dir():
            raise UserError(f"{flag} '{given}': '{place}' is a file, not a folder")
        with tempfile.TemporaryDirectory(prefix=".resp_tune_", dir=place):
            return folder
    except OSError as error:
        raise UserError(
            f"{flag} '{given}': '{place}' may not be written ({error.strerror}): give another "
            "folder"
        ) from error


def cache_folder() -> Path:
    """`$RESP_TUNE_CACHE`, else `resp_tune` in the user's cache folder (XDG)."""
    if given := os.environ.get("RESP_TUNE_CACHE"):
        return user_path(given).absolute()
    return user_path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "resp_tune"


def cache_limit_bytes() -> int:
    """Size that the feature stores may take together: `$RESP_TUNE_CACHE_GB`, default 20."""
    text = os.environ.get("RESP_TUNE_CACHE_GB", "20")
    try:
        gigabytes = float(text)
    except ValueError:
        gigabytes = -1.0
    if not 0 <= gigabytes < 1e6:
        raise UserError(f"RESP_TUNE_CACHE_GB='{text}' is not a number of gigabytes such as 20")
    return int(gigabytes * 1e9)


def write_atomically(path: Path, data: bytes | memoryview) -> None:
    """Write `data` to `path` so that a reader sees the old file or the new one, never a part.

    Raises `RunError` where the disk is full.
    """
    # Other hosts may write there too, with processes of the same number.
    beside = path.with_name(f".{path.name}.{socket.gethostname()[:60]}.{os.getpid()}.part")
    with full_disk_in_one_line(path):
        try:
            with beside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)


def remove_parts(folder: Path) -> None:
    """Remove below `folder` what killed processes have left of files that appear whole."""
    for part in folder.rglob(".*.part*"):  # a database may have a journal
        part.unlink(missing_ok=True)


def full_disk(error: BaseException) -> bool:
    """Whether `error` says that a disk, or somebody's share of it, is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


@contextmanager
def full_disk_in_one_line(path: Path, instead: str = "") -> Iterator[None]:
    """A full disk is a `RunError` that names its file, else `path`, and what to do `instead`."""
    try:
        yield
    except OSError as error:
        if not full_disk(error):
            raise
        raise RunError(
            f"no space left to write '{error.filename or path}': free some{instead}, then rerun "
            "the same command to resume"
        ) from error
