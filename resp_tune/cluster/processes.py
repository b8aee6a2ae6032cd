"""Find and end the processes that this one has started."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import psutil

KILL_SECONDS = 2.0


def descendants() -> list[psutil.Process]:
    """Return all living processes that this one, or one of them, has started."""
    return psutil.Process().children(recursive=True)


def with_argument(text: str) -> list[psutil.Process]:
    """Return the descendants whose command line contains `text`."""
    matching = []
    for process in descendants():
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if any(text in argument for argument in process.cmdline()):
                matching.append(process)
    return matching


def process_tree(process: psutil.Process) -> list[psutil.Process]:
    """Return a process and its descendants; empty if it has ended."""
    with suppress(psutil.NoSuchProcess):
        return [process, *process.children(recursive=True)]
    return []


def kill(processes: Sequence[psutil.Process]) -> None:
    """Send SIGKILL to those that still live, and wait at most `KILL_SECONDS` until they end."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # it has ended; its number may be another's now
            process.kill()
    psutil.wait_procs(processes, timeout=KILL_SECONDS)
