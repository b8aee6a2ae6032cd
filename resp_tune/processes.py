"""The processes that this one has started."""

from __future__ import annotations

from contextlib import suppress

import psutil


def kill_children() -> None:
    """SIGKILL to every process that this one has started, at whatever remove."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # its parent's end has ended it
            child.kill()
