"""A Ray that only its owner can reach: on loopback, with a token of its own, in a closed folder.

Ray hands on pickles, so whoever may write to its sockets or files may run code as its owner. By
itself it listens on every interface and keeps its sockets and logs where everybody may write.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from resp_tune.cluster.ray_internals import reread_authentication
from resp_tune.common.paths import full_disk
from resp_tune.errors import UserError

# Ray's name for it is of the past: with 0 it takes 127.0.0.1 for its own address, and then listens
# nowhere else. It replaces `_node_ip_address="127.0.0.1"` by the host's address.
_CLUSTERS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_MODE, _TOKEN, _TOKEN_FILE = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"


@contextlib.contextmanager
def secluded() -> Iterator[Path]:
    """A Ray that is started inside is its owner's alone; yields the folder to start it in.

    Its token stands in the environment of its processes, which only their owner may read; without
    one, Ray would leave one in `~/.ray/auth_token`. `RAY_AUTH_MODE`, `RAY_AUTH_TOKEN` and
    `RAY_AUTH_TOKEN_PATH` stay as the user has set them.
    """
    from ray._private import ray_constants

    folder = closed_folder()
    values = {_CLUSTERS: "0", _MODE: os.environ.get(_MODE) or "token"}
    if not os.environ.get(_TOKEN) and not os.environ.get(_TOKEN_FILE):
        values[_TOKEN] = secrets.token_hex(32)
    usual = ray_constants.ENABLE_RAY_CLUSTER  # `_CLUSTERS` as it was when Ray was imported
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        with _environment(values):
            reread_authentication()
            yield folder
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = usual


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def rays_folder() -> Path:
    """Where Ray's sockets and logs go: `resp_tune-UID` in `$RAY_TMPDIR`, else in `$TMPDIR`.

    A short name, since the whole path of a socket may have 107 bytes.
    """
    parent = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()).absolute()
    return parent / f"resp_tune-{os.geteuid()}"


def check_closed(folder: Path) -> None:
    """Raise `UserError` where `folder` exists and others than its owner, us, can get at it."""
    try:
        found = folder.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISLNK(found.st_mode):
        wrong = "a link"
    elif not stat.S_ISDIR(found.st_mode):
        wrong = "not a folder"
    elif found.st_uid != os.geteuid():
        wrong = f"of the user with the number {found.st_uid}"
    elif found.st_mode & 0o077:
        wrong = f"open to others (mode {stat.S_IMODE(found.st_mode):o})"
    else:
        return
    raise UserError(
        f"'{folder}', for Ray's sockets and logs, is {wrong}: remove it, or set RAY_TMPDIR to a "
        "folder of your own"
    )


def closed_folder() -> Path:
    """`rays_folder()`, made where it is missing; raises as `check_closed`."""
    folder = rays_folder()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
    except OSError as error:
        if full_disk(error):
            raise
        raise UserError(
            f"'{folder}', for Ray's sockets and logs, cannot be made ({error.strerror}): set "
            "RAY_TMPDIR to a folder of your own"
        ) from error
    check_closed(folder)
    return folder
