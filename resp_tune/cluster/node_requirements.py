"""What a node must share with the driver to run trials; checked on nodes that join later, too."""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from resp_tune.cluster.node_probe import difference, versions

SHARED_SECONDS = 10.0  # in which a shared folder shows what another machine has written


@dataclass(frozen=True)
class NodeRequirements:
    """The driver's `versions`, and the `content` that it has written to a `file` of the storage.

    `file` is None when the storage is an object store, which every trial accesses anyway.
    """

    versions: Mapping[str, str]
    file: Path | None
    content: str

    @classmethod
    def of_driver(cls, file: Path | None) -> NodeRequirements:
        """Return the requirements that this process, the driver, sets."""
        return cls(versions(), file, "" if file is None else file.read_text())

    def violation(self) -> str | None:
        """Return why this machine cannot run trials and what to do, or None if it can."""
        other = difference(versions(), self.versions)
        if other is not None:
            return (
                f"{_this_node()} has joined with {other}: install there what the driver has, or "
                "take it out of the cluster, then rerun the same command to resume"
            )
        if self.file is None or shows_content(self.file, self.content):
            return None
        return (
            f"{_this_node()} has joined and does not see the storage '{self.file.parent}': mount "
            "it there, or take the node out of the cluster, then rerun the same command to resume"
        )


def shows_content(file: Path, content: str, seconds: float | None = None) -> bool:
    """Wait up to `seconds` (default `SHARED_SECONDS`) until a shared `file` has this content."""
    deadline = time.monotonic() + (SHARED_SECONDS if seconds is None else seconds)
    while _read(file) != content:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _read(file: Path) -> str | None:
    try:
        return file.read_text()
    except OSError:
        return None


def _this_node() -> str:
    import ray

    address = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]  # Ray has no annotation here
    return f"node {socket.gethostname()} ({address})"
