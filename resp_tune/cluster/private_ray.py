"""A Ray that only its owner can reach: on loopback, with its own token, in a private folder.

Ray passes pickles on, so whoever may write to its sockets or files may run code as its owner. By
default it listens on every interface and keeps its sockets and logs where every user may write.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from resp_tune.cluster import ray_internals
from resp_tune.common.paths import full_disk
from resp_tune.errors import UserError

_MODE, _TOKEN, _TOKEN_FILE = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"


@contextlib.contextmanager
def private_ray_env() -> Iterator[Path]:
    """Set the environment in which a Ray that is started is private; yield the folder for it.

    The token is in the environment of its processes, which only their owner may read; without one,
    Ray would leave one in `~/.ray/auth_token`. `RAY_AUTH_MODE`, `RAY_AUTH_TOKEN` and
    `RAY_AUTH_TOKEN_PATH` stay as the user has set them.
    """
    folder = make_ray_folder()
    values = {ray_internals.ENABLE_CLUSTER: "0", _MODE: os.environ.get(_MODE) or "token"}
    if not os.environ.get(_TOKEN) and not os.environ.get(_TOKEN_FILE):
        values[_TOKEN] = secrets.token_hex(32)
    with ray_internals.loopback_only(), _environment(values):
        ray_internals.reload_authentication()
        yield folder


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ[name] for name in values if name in os.environ}
    os.environ.update(values)
    try:
        yield
    finally:
        for name in values:
            os.environ.pop(name, None)
        os.environ.update(before)


def ray_folder() -> Path:
    """Return the folder for Ray's sockets and logs: `resp_tune-UID` in `$RAY_TMPDIR` or `$TMPDIR`.

    The name is short because the whole path of a socket may have at most 107 bytes.
    """
    parent = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()).absolute()
    return parent / f"resp_tune-{os.geteuid()}"


def check_private(folder: Path) -> None:
    """Raise `UserError` if `folder` exists and other users can access it."""
    try:
        status = folder.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISLNK(status.st_mode):
        problem = "a link"
    elif not stat.S_ISDIR(status.st_mode):
        problem = "not a folder"
    elif status.st_uid != os.geteuid():
        problem = f"owned by user {status.st_uid}"
    elif status.st_mode & 0o077:
        problem = f"open to others (mode {stat.S_IMODE(status.st_mode):o})"
    else:
        return
    raise UserError(
        f"'{folder}', for Ray's sockets and logs, is {problem}: remove it, or set RAY_TMPDIR to a "
        "folder of your own"
    )


def make_ray_folder() -> Path:
    """Return `ray_folder()`, created if it is missing; raises like `check_private`."""
    folder = ray_folder()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
    except OSError as error:
        if full_disk(error):
            raise
        raise UserError(
            f"'{folder}', for Ray's sockets and logs, cannot be created ({error.strerror}): set "
            "RAY_TMPDIR to a folder of your own"
        ) from error
    check_private(folder)
    return folder
