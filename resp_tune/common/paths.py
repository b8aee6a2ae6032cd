"""Paths that users give, the cache folder, and atomic writes."""

from __future__ import annotations

import errno
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from resp_tune.errors import RunError, UserError

MAX_NAME_BYTES = 255  # of one name, on every common file system


def user_path(text: str) -> Path:
    """Return the path in `text`, with `~` and `~user` expanded.

    Raises `UserError` for an unknown user, or a name that no file can have.
    """
    parts = [os.fsencode(part) for part in Path(text).parts]
    if "\0" in text or any(len(part) > MAX_NAME_BYTES for part in parts):
        raise UserError(
            f"'{text[:40]}…' is not a path: a name in it holds NUL or over {MAX_NAME_BYTES} bytes"
        )
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        home = Path(text).parts[0]
        raise UserError(
            f"'{text}': there is no home folder '{home}': give the whole path"
        ) from error


def folder_to_write(flag: str, given: str, instead: str = "give another folder") -> Path:
    """Return the absolute path of a folder that can be written, whether it exists yet or not.

    Tried with a temporary folder, as permissions do not apply to every user and file system.
    Raises `UserError`, which names `flag` and ends with the remedy `instead`.
    """
    if given == "":  # from an unset variable of the shell
        raise UserError(f"{flag} '': give a folder")
    folder = place = user_path(given).absolute()
    try:
        str(folder).encode()
        place = next(p for p in (folder, *folder.parents) if os.path.lexists(p))
        if not place.is_dir():
            kind = "a file, not a folder" if place.exists() else "a broken link"
            raise UserError(f"{flag} '{given}': '{place}' is {kind}: {instead}")
        with tempfile.TemporaryDirectory(prefix=".resp_tune_", dir=place):
            return folder
    except UnicodeEncodeError as error:
        raise UserError(
            f"{flag} {given!r}: Ray cannot use a path that is not UTF-8: give another folder, or "
            "set LC_ALL=C.UTF-8 where it is"
        ) from error
    except OSError as error:
        raise UserError(
            f"{flag} '{given}': '{place}' may not be written ({error.strerror}): {instead}"
        ) from error


def can_write(folder: Path) -> bool:
    """Return whether files can be made in an existing folder.

    Tried, as permissions do not apply to every user and file system.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=".resp_tune_", dir=folder):
            return True
    except OSError:
        return False


def cache_folder() -> Path:
    """Return `$RESP_TUNE_CACHE`, else `resp_tune` in the user's cache folder (XDG).

    Raises `UserError` if the user has no home folder and neither variable is set.
    """
    if given := os.environ.get("RESP_TUNE_CACHE"):
        return user_path(given).absolute()
    if given := os.environ.get("XDG_CACHE_HOME"):
        return user_path(given).absolute() / "resp_tune"
    if not has_home():
        raise UserError(
            "this user has no home folder for the cache: set RESP_TUNE_CACHE to a folder that can "
            "be written"
        )
    return Path("~/.cache/resp_tune").expanduser().absolute()


def has_home() -> bool:
    """Return whether `~` can be expanded: by `$HOME`, or by the entry of the user's account."""
    try:
        Path.home()
    except RuntimeError:
        return False
    return True


def cache_limit_bytes() -> int:
    """Return the total size of the feature caches: `$RESP_TUNE_CACHE_GB`, default 20."""
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

    Raises `RunError` if the disk is full.
    """
    # Other hosts may write there too, with the same process id.
    temporary = path.with_name(f".{path.name}.{socket.gethostname()[:60]}.{os.getpid()}.part")
    with full_disk_in_one_line(path):
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def remove_parts(folder: Path) -> None:
    """Remove the temporary files of killed processes in `folder` and below it."""
    for part in folder.rglob(".*.part*"):  # a database may have a journal
        part.unlink(missing_ok=True)


def full_disk(error: BaseException) -> bool:
    """Tell whether `error` means that a disk or a quota is full."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def describe_file_error(error: OSError) -> str | None:
    """Return what is wrong with a file or its disk and how to mend it; None without a file."""
    path = error.filename2 or error.filename
    if full_disk(error):
        where = f" while writing '{path}'" if path else ""
        return f"disk full{where}: free some space"
    if path is None:
        return None
    if isinstance(error, IsADirectoryError):
        return f"'{path}' should be a file: move the folder of that name away"
    if isinstance(error, NotADirectoryError | FileExistsError):
        return f"'{path}' should be a folder: move the file of that name away"
    return f"'{path}' cannot be used ({error.strerror}): make it readable and writable"


@contextmanager
def full_disk_in_one_line(path: Path, instead: str = "") -> Iterator[None]:
    """Turn the error of a full disk into a `RunError` that names its file, else `path`.

    `instead` names another remedy than freeing space.
    """
    try:
        yield
    except OSError as error:
        if not full_disk(error):
            raise
        raise RunError(
            f"disk full while writing '{error.filename or path}': free some space{instead}, then "
            "rerun the same command to resume"
        ) from error
