"""A Ray for one search that only its owner can reach: on loopback, with its token, in its folder.

Ray passes pickles on, so whoever may write to its sockets or files may run code as its owner. By
default it listens on every interface and keeps its sockets and logs where every user may write.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from resp_tune.cluster import ray_internals
from resp_tune.cluster.limits import MIN_FREE, OBJECT_STORE, few_processes, raise_soft_limits
from resp_tune.cluster.processes import kill, process_tree, with_argument
from resp_tune.cluster.ray_thread import run_in_thread
from resp_tune.cluster.resources import Machine
from resp_tune.common.paths import folder_to_write, full_disk, has_home
from resp_tune.common.timeline import span
from resp_tune.errors import RunError, UserError

MAX_SOCKET_BYTES = 107  # of the path of a Unix socket
_MODES = ("token", "disabled")
_MODE, _TOKEN, _TOKEN_FILE = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"


@contextlib.contextmanager
def local_ray(machine: Machine, gpus: int) -> Iterator[None]:
    """Run Ray on this machine alone, with `gpus` GPUs, which are logical if there are none.

    Only its owner can reach it. Raises `RunError` if it does not start, and `UserError` if its
    folder cannot be made or is not private.
    """
    raise_soft_limits()
    ray_internals.prepare()
    with span("import of Ray"):
        import ray

    with private_ray_env() as folder:
        options: dict[str, Any] = {
            # Without it Ray would join a cluster that runs here, or follow a stale file about one.
            "address": "local",
            "num_cpus": machine.cpus,
            "num_gpus": gpus,
            "include_dashboard": False,
            "log_to_driver": False,
            "logging_level": logging.ERROR,
            "object_store_memory": OBJECT_STORE,
            ray_internals.TEMP_FOLDER: str(folder / "ray"),  # Ray makes it writable for all
        }
        daemons: list[psutil.Process] = []

        def begin() -> None:
            try:
                with span("Ray starts"):
                    ray.init(**options)
            except Exception as error:  # each part of Ray that does not start has its own
                raise RunError(_start_failed(error, folder, machine.cpus)) from error
            daemons.extend(with_argument(str(folder)))

        def end() -> None:
            started = [process for daemon in daemons for process in process_tree(daemon)]
            with span("Ray ends"):
                ray.shutdown()
                kill(started)  # its agents would notice only after half a minute

        with run_in_thread(begin, end):
            yield


def _start_failed(error: Exception, folder: Path, cpus: int) -> str:
    free = shutil.disk_usage(folder).free
    cause = " ".join(str(error).split())[:200]
    limit = few_processes(cpus)
    if "AF_UNIX path length" in cause:
        remedy = "that path is too long for a socket; set RAY_TMPDIR to a shorter one"
    elif free < MIN_FREE:
        remedy = "set RAY_TMPDIR to a folder on another disk"
    elif limit is not None:
        remedy = (
            f"this user may start only {limit.left} more processes and threads: {limit.how}, or "
            "end other programs"
        )
    else:
        remedy = "see its log"
    return (
        f"Ray could not be started ({cause}); its logs and sockets go to '{folder}', where "
        f"{free / 1e6:,.0f} MB are free: {remedy}, then rerun the same command to resume"
    )


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


def give_ray_a_home() -> None:
    """Set `HOME` to `ray_folder()` if this user has no home folder; call it before importing Ray.

    Ray and libraries that it imports expand `~`, and fail where that is impossible.
    """
    if not has_home():
        os.environ["HOME"] = str(ray_folder())


def check_ray_folder() -> None:
    """Raise `UserError` unless `ray_folder()` can be made, is private and fits Ray's sockets.

    Makes nothing.
    """
    folder = ray_folder()
    variable = "RAY_TMPDIR" if os.environ.get("RAY_TMPDIR") else "TMPDIR"
    remedy = "set RAY_TMPDIR to a folder of your own"
    folder_to_write(variable, str(folder.parent), remedy)
    check_private(folder)
    folder_to_write(variable, str(folder), remedy)
    if not str(folder).isascii():
        raise UserError(
            f"{variable} '{folder.parent}': Ray cannot use letters beyond ASCII in it: set "
            "RAY_TMPDIR to a folder such as /tmp"
        )
    longest = str(folder / "ray" / ray_internals.LONGEST_SOCKET)
    if (excess := len(os.fsencode(longest)) - MAX_SOCKET_BYTES) > 0:
        raise UserError(
            f"{variable} '{folder.parent}' is {excess} bytes too long for the paths of Ray's "
            f"sockets, which may have {MAX_SOCKET_BYTES}: set RAY_TMPDIR to a shorter folder such "
            "as /tmp"
        )


def check_login() -> None:
    """Raise `UserError` if the user's own `RAY_AUTH_*` would keep Ray from starting."""
    mode, file = os.environ.get(_MODE), os.environ.get(_TOKEN_FILE)
    if mode and mode.lower() not in _MODES:
        raise UserError(f"{_MODE}='{mode}' is not {' or '.join(_MODES)}: set one, or unset it")
    if file and not os.environ.get(_TOKEN) and (mode or "token").lower() == "token":
        try:
            empty = not Path(file).read_text().strip()
        except (OSError, ValueError) as error:
            cause = getattr(error, "strerror", None) or error
            raise UserError(
                f"{_TOKEN_FILE}='{file}' cannot be read ({cause}): name a file with a token, or "
                "unset it"
            ) from error
        if empty:
            raise UserError(f"{_TOKEN_FILE}='{file}' is empty: write a token to it, or unset it")


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
