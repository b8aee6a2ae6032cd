"""What a node must share with the driver to run trials; also asked of nodes that join later."""

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
    """The driver's `versions`, and a file of the storage with what it has written there.

    `file` is None where the storage is an object store, which every trial asks anyway.
    """

    versions: Mapping[str, str]
    file: Path | None
    content: str

    @classmethod
    def of_driver(cls, file: Path | None) -> NodeRequirements:
        """As this process sees them."""
        return cls(versions(), file, "" if file is None else file.read_text())

    def lacking(self) -> str | None:
        """Why this machine can run no trial, and what to do; None where it can."""
        other = difference(versions(), self.versions)
        if other is not None:
            return (
                f"{_own_name()} has joined with {other}: install there what the driver has, or "
                "take it out of the cluster, then type the same command again: it goes on"
            )
        if self.file is None or self._seen(self.file):
            return None
        return (
            f"{_own_name()} has joined and does not see the storage '{self.file.parent}': let it, "
            "or take it out of the cluster, then type the same command again: it goes on"
        )

    def _seen(self, file: Path) -> bool:
        deadline = time.monotonic() + SHARED_SECONDS
        while _content(file) != self.content:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)
        return True


def _content(file: Path) -> str | None:
    try:
        return file.read_text()
    except OSError:
        return None


def _own_name() -> str:
    import ray

    address = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]  # Ray has no annotation here
    return f"node {socket.gethostname()} ({address})"
