"""Allow one process at a time to run a search of a name."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from resp_tune.errors import UserError

HELD_BY = ".held_by"


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of `folder`, which ends with the process; `UserError` names another holder."""
    lock, holder = FileLock(folder / ".lock", timeout=0), folder / HELD_BY
    try:
        lock.acquire()
    except Timeout:
        who = holder.read_text() if holder.exists() else "another process"
        raise UserError(
            f"search '{folder.name}' is being run by {who}: wait for it, or give another --name"
        ) from None
    try:
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        with suppress(OSError):  # a stale file does no harm: only the lock counts
            holder.unlink(missing_ok=True)
        lock.release()
