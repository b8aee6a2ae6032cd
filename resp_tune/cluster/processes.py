"""The processes that this one has started."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import psutil

GONE_SECONDS = 2.0


def descendants() -> list[psutil.Process]:
    """Every process that this one has started, at whatever remove, and that lives."""
    return psutil.Process().children(recursive=True)


def naming(word: str) -> list[psutil.Process]:
    """Those of `descendants` whose command line has `word` in it."""
    found = []
    for process in descendants():
        with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            if any(word in argument for argument in process.cmdline()):
                found.append(process)
    return found


def family(process: psutil.Process) -> list[psutil.Process]:
    """A process with its descendants; of one that has ended, nobody."""
    with suppress(psutil.NoSuchProcess):
        return [process, *process.children(recursive=True)]
    return []


def kill(processes: Sequence[psutil.Process]) -> None:
    """SIGKILL to those that still live; back when they are gone, after `GONE_SECONDS` at most."""
    for process in processes:
        with suppress(psutil.NoSuchProcess):  # it has ended; its number may be another's now
            process.kill()
    psutil.wait_procs(processes, timeout=GONE_SECONDS)
