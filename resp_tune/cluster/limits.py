"""Check the limits of this machine and user that a private Ray and its trials must keep to.

The numbers were measured with Ray 2.60 on Linux: before any trial, Ray has about 170 threads and
24 more for each worker, and one process has at most 60 open files and 3 GB of address space.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from resp_tune.errors import UserError

log = logging.getLogger(__name__)

OBJECT_STORE = 200_000_000  # bytes: clip tables only, as frames are memory-mapped
MIN_FREE = 100_000_000  # bytes of disk for Ray's logs and sockets
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # where Ray keeps its object store
CGROUPS = Path("/sys/fs/cgroup")
_ADDRESS_SPACE = 3_200_000_000  # bytes
_FILES = 65_536  # more are not needed, and programs that close all they might have get slow


@dataclass(frozen=True)
class Limit:
    """How much of a resource is left; `how` names the limit and says how to raise it."""

    left: int
    how: str


def raise_soft_limits() -> None:
    """Raise the soft limits to the hard ones, but that on open files to 65,536 at most."""
    for kind in (resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE, resource.RLIMIT_AS):
        _raise(kind, resource.getrlimit(kind)[1])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < _FILES:
        _raise(
            resource.RLIMIT_NOFILE, _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
        )


def _raise(kind: int, soft: int) -> None:
    with contextlib.suppress(OSError, ValueError):  # some systems have a lower maximum
        resource.setrlimit(kind, (soft, resource.getrlimit(kind)[1]))


def check_processes(cpus: int) -> None:
    """Raise `UserError` if Ray cannot start its threads on `cpus` cores; warn if few remain."""
    limit = few_processes(cpus)
    if limit is None:
        return
    text = (
        f"this user may start only {limit.left} more processes and threads, and Ray may need "
        f"{_usual_threads(cpus)} on {cpus} cores: {limit.how}, or end other programs"
    )
    if limit.left < 120 + 24 * cpus:
        raise UserError(text)
    log.warning(text)


def few_processes(cpus: int) -> Limit | None:
    """Return the limit on processes if Ray may need more than it leaves on `cpus` cores."""
    limit = process_limit()
    return limit if limit is not None and limit.left < _usual_threads(cpus) else None


def _usual_threads(cpus: int) -> int:
    return 300 + 60 * cpus


def process_limit() -> Limit | None:
    """Return how many more processes and threads may be started, None if there is no limit.

    The limits are `RLIMIT_NPROC`, which root does not have, and that of the control group of a
    container, a batch job or a login.
    """
    limits = list(_cgroup_limits())
    _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    if hard != resource.RLIM_INFINITY and os.getuid() != 0:
        limits.append(Limit(max(0, hard - _threads_of_user()), f"raise the limit of {hard} "
            "(ulimit -u, RLIMIT_NPROC)"))  # fmt: skip
    return min(limits, key=lambda limit: limit.left, default=None)


def _threads_of_user() -> int:
    count = 0
    for process in psutil.process_iter(["uids", "num_threads"]):
        uids = process.info["uids"]
        if uids is not None and uids.real == os.getuid():
            count += process.info["num_threads"] or 0
    return count


def _cgroup_limits() -> Iterator[Limit]:
    """Yield the limits on processes of this process's control group and those above it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers not in ("", "pids"):
                continue
            root = CGROUPS / controllers
            group = root / path.strip("/")
            for folder in (group, *group.parents):
                with contextlib.suppress(OSError, ValueError):  # "max", or none at the root
                    most = int((folder / "pids.max").read_text())
                    current = int((folder / "pids.current").read_text())
                    how = f"raise the limit of {most} of its control group ({folder}/pids.max)"
                    yield Limit(max(0, most - current), how)
                if folder == root:
                    break


def check_open_files(cpus: int) -> None:
    """Raise `UserError` if a process of Ray may open too few files; warn if they are few."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        return
    remedy = f"raise the limit of {hard} (ulimit -n, RLIMIT_NOFILE)"
    least, usual = 80 + 4 * cpus, 250 + 16 * cpus
    if hard < least:
        raise UserError(f"Ray needs about {usual} open files on {cpus} cores: {remedy}")
    if hard < usual:
        log.warning(f"Ray may need {usual} open files on {cpus} cores: if it fails, {remedy}")


def check_file_size(needed: float) -> None:
    """Raise `UserError` if a file may not have `needed` bytes."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    if most != resource.RLIM_INFINITY and most < needed:
        raise UserError(
            f"a file may have {most / 1e6:,.0f} MB (ulimit -f, RLIMIT_FSIZE), and the search needs "
            f"one of {needed / 1e6:,.0f} MB: raise that limit"
        )


def check_address_space() -> None:
    """Raise `UserError` if the address space of a process is too small for torch and Ray."""
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    if most != resource.RLIM_INFINITY and most < _ADDRESS_SPACE:
        raise UserError(
            f"a process may have {most / 1e9:.1f} GB of address space (ulimit -v, RLIMIT_AS), and "
            f"torch and Ray need about {_ADDRESS_SPACE / 1e9:.1f} GB: raise that limit"
        )


def check_object_store(folder: Path) -> None:
    """Raise `UserError` if Ray cannot keep its object store and its logs.

    The object store is in `/dev/shm`, or, if that is too small, in Ray's `folder` on a disk. A
    folder that does not exist yet is on the disk of the nearest one that does.
    """
    disk = next(path for path in (folder, *folder.parents) if path.exists())
    needed = MIN_FREE
    if sys.platform == "linux" and not SHARED_MEMORY.is_dir():
        raise UserError(f"there is no {SHARED_MEMORY}, where Ray keeps its object store: mount it")
    if sys.platform == "linux" and shutil.disk_usage(SHARED_MEMORY).free >= OBJECT_STORE:
        try:
            with tempfile.TemporaryFile(dir=SHARED_MEMORY):
                pass
        except OSError as error:
            raise UserError(
                f"{SHARED_MEMORY}, for Ray's object store, may not be written ({error.strerror}): "
                f"give it the mode 1777 (chmod 1777 {SHARED_MEMORY})"
            ) from error
    else:
        needed += OBJECT_STORE
    if (free := shutil.disk_usage(disk).free) < needed:
        raise UserError(
            f"Ray needs {needed / 1e6:,.0f} MB in '{folder}', and its disk has {free / 1e6:,.0f} "
            "MB free: free some space, or set RAY_TMPDIR to a folder on another disk"
        )


def check_loopback() -> None:
    """Raise `UserError` if processes of this machine cannot connect to each other at 127.0.0.1."""
    try:
        with (
            socket.create_server(("127.0.0.1", 0)) as server,
            socket.create_connection(server.getsockname(), timeout=2),
        ):
            pass
    except OSError as error:
        raise UserError(
            f"127.0.0.1, where Ray's processes meet, cannot be used ({error}): bring the loopback "
            "interface up (ip link set lo up), or allow it in the sandbox"
        ) from error
