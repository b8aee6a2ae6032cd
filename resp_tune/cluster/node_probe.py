"""Probe each node of a cluster: versions, access to storage, recordings and tracking server.

`probe_nodes` ships its code to the nodes by value, so that it works on nodes without `resp_tune`.
A node that joins later checks the `NodeRequirements` itself, before its first trial.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import platform
import socket
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resp_tune.cluster import node_calls
from resp_tune.cluster.connect import Node
from resp_tune.storage.object_store import ObjectPath

ANSWER_SECONDS = 60.0
SHARED_SECONDS = 10.0  # in which a shared folder shows what another machine has written
PACKAGES = ("torch", "ray", "resp_tune")


@dataclass(frozen=True)
class ProbeRequest:
    """What the nodes are to check.

    `token` is a file that the driver has written to a new folder of the storage, or the object
    store's prefix with the object `driver`. A node writes the token's hash beside it, under its id.
    `packages` are those of networks, whose versions are compared beside those of `PACKAGES`.
    `sizes` holds the bytes of every recording by path, `digests` the SHA-256 of a few of them,
    `tracking` host and port of the tracking server, or None when it is a file.
    """

    token: Path | ObjectPath
    sizes: Mapping[Path, int]
    digests: Mapping[Path, str]
    tracking: tuple[str, int] | None
    packages: tuple[str, ...] = ()


@dataclass(frozen=True)
class ProbeResult:
    """A node's versions, and why it cannot use storage, data or tracking: None if it can."""

    versions: Mapping[str, str]  # of Python and packages; `source`: a hash of resp_tune's code
    storage: str | None
    data: str | None
    tracking: str | None


def probe_nodes(nodes: Sequence[Node], request: ProbeRequest) -> dict[str, ProbeResult | str]:
    """Return each node's result by its id, or why it sent none within `ANSWER_SECONDS`."""
    from ray import cloudpickle

    token = request.token
    arguments = (
        (token.uri, token.prefix) if isinstance(token, ObjectPath) else str(token),
        dict(request.sizes),
        dict(request.digests),
        request.tracking,
        request.packages,
    )
    # A node that lacks these modules, or has other versions of them, can run them all the same.
    shipped = (sys.modules[__name__], node_calls)
    for module in shipped:
        cloudpickle.register_pickle_by_value(module)  # type: ignore[no-untyped-call]  # Ray's
    try:
        by_node = {node.id: (node.id, *arguments) for node in nodes}
        results = node_calls.call_on_nodes(_probe, by_node, timeout=ANSWER_SECONDS)
    finally:
        for module in shipped:
            cloudpickle.unregister_pickle_by_value(module)  # type: ignore[no-untyped-call]  # Ray's
    return {node_id: _probe_result(result) for node_id, result in results.items()}


def _probe_result(result: dict[str, Any] | Exception) -> ProbeResult | str:
    from ray.exceptions import GetTimeoutError

    if isinstance(result, GetTimeoutError):
        return f"no answer within {ANSWER_SECONDS:g} s"
    if isinstance(result, Exception):
        return " ".join(str(result).split())[:200]
    return ProbeResult(**result)


def _probe(
    node_id: str,
    token: str | tuple[str, str],
    sizes: dict[Path, int],
    digests: dict[Path, str],
    tracking: tuple[str, int] | None,
    packages: tuple[str, ...],
) -> dict[str, Any]:
    """Run on a node, with only the standard library, unless the storage is an object store."""
    return {
        "versions": versions(packages),
        "storage": _try_folder(Path(token), node_id)
        if isinstance(token, str)
        else _try_object_store(*token, node_id),
        "data": _try_recordings(sizes, digests),
        "tracking": None if tracking is None else _try_server(tracking),
    }


def versions(packages: Collection[str] = ()) -> dict[str, str]:
    """Return the versions of Python, `PACKAGES` and `packages`, and a hash of our code.

    They are without build tags.
    """
    installed = {"python": platform.python_version()}
    for package in dict.fromkeys((*PACKAGES, *packages)):
        try:
            installed[package] = importlib.metadata.version(package).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            installed[package] = "missing"
    # A copy that is only on the path, as Ray ships working folders, has no metadata.
    spec = importlib.util.find_spec("resp_tune")
    if spec is not None and spec.submodule_search_locations:
        folder, digest = Path(next(iter(spec.submodule_search_locations))), hashlib.sha256()
        for path in sorted(folder.rglob("*.py")):
            digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
        installed["source"] = digest.hexdigest()[:12]
    return installed


def difference(there: Mapping[str, str], here: Mapping[str, str]) -> str | None:
    """Return how a node's `versions` differ from those `here`, or None if they are equal."""
    differences = [
        f"{name} {other} (here {own})"
        for name, own in here.items()
        if name != "source" and (other := there.get(name, "missing")) != own
    ]
    same_version = there.get("resp_tune") == here.get("resp_tune")
    if same_version and "source" in here and there.get("source") != here["source"]:
        differences.append("other code of resp_tune under the same version")
    return ", ".join(differences) or None


def _try_object_store(uri: str, prefix: str, node_id: str) -> str | None:
    try:
        from resp_tune.storage.object_store import ObjectPath, StorageError
    except ImportError as error:
        return f"cannot be used ({error})"
    store = ObjectPath(uri, prefix)
    try:
        content = store.read("driver")
        if content is None:
            return "is not the driver's"
        store.write(hashlib.sha256(content).hexdigest().encode(), node_id)
    except StorageError as error:
        return f"cannot be used ({error})"
    return None


def _try_folder(token: Path, node_id: str) -> str | None:
    try:
        content = token.read_bytes()
    except OSError as error:
        return f"is not the driver's folder ({error.strerror})"
    try:
        token.with_name(node_id).write_text(hashlib.sha256(content).hexdigest())
    except OSError as error:
        return f"cannot be written ({error.strerror})"
    return None


def _try_recordings(sizes: dict[Path, int], digests: dict[Path, str]) -> str | None:
    missing = [path for path, size in sizes.items() if _size(path) != size]
    if missing:
        return f"{len(missing)} of {len(sizes)} recordings not seen"
    for path, digest in digests.items():
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                return f"{path.name} is another file there"
    return None


def _size(path: Path) -> int | None:
    with suppress(OSError):
        return path.stat().st_size
    return None


def _try_server(server: tuple[str, int]) -> str | None:
    try:
        with socket.create_connection(server, timeout=5.0):
            return None
    except OSError as error:
        return f"{server[0]}:{server[1]} not reached ({error.strerror or error})"


@dataclass(frozen=True)
class NodeRequirements:
    """The driver's `versions`, and the `content` that it has written to a `file` of the storage.

    `file` is None when the storage is an object store, which every trial accesses anyway.
    """

    versions: Mapping[str, str]
    file: Path | None
    content: str

    @classmethod
    def of_driver(cls, file: Path | None, packages: Collection[str] = ()) -> NodeRequirements:
        """Return the requirements that this process, the driver, sets; `packages` of networks."""
        return cls(versions(packages), file, "" if file is None else file.read_text())

    def violation(self) -> str | None:
        """Return why this machine cannot run trials and what to do, or None if it can."""
        packages = [name for name in self.versions if name not in ("python", "source")]
        other = difference(versions(packages), self.versions)
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
    with suppress(OSError):
        return file.read_text()
    return None


def _this_node() -> str:
    import ray

    address = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]  # Ray has no annotation here
    return f"node {socket.gethostname()} ({address})"
