"""Check on every node of a cluster, before any trial, what trials need there."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from resp_tune.cluster.connect import Node
from resp_tune.cluster.node_probe import (
    SHARED_SECONDS,
    ProbeRequest,
    ProbeResult,
    difference,
    probe_nodes,
    shows_content,
    versions,
)
from resp_tune.cluster.node_setup import common_device
from resp_tune.cluster.resources import trial_capacity
from resp_tune.common.paths import folder_to_write
from resp_tune.errors import UserError
from resp_tune.harness.spec import SearchData, SearchLocation, SearchSpec
from resp_tune.storage.object_store import ObjectPath, StorageError
from resp_tune.tracking.uri import is_server

COMPARED_RECORDINGS = 3  # whose content is compared; of the others the size
COLUMNS = ("versions", "storage", "data", "tracking")


@dataclass(frozen=True)
class NodeReport:
    """The problems of a node by `COLUMNS`, and how many trials it can hold.

    A node that cannot hold any may lack everything.
    """

    node: Node
    trials: int
    problems: Mapping[str, str | None]

    @property
    def fatal(self) -> str | None:
        """Return why trials that the node can hold cannot run there."""
        if not self.trials:
            return None
        return self.problems["versions"] or self.problems["storage"]


def check_nodes(spec: SearchSpec, console: Console) -> SearchSpec:
    """Print a table of the cluster's nodes; return `spec` with the device of its trials.

    Raises `UserError` if a node that can hold trials has other versions or cannot use the storage.
    Leaves nothing behind.
    """
    location, compute = spec.location, spec.compute
    if compute.cluster is None:
        return spec
    nodes, remote, tracking = compute.cluster.nodes, location.remote, location.tracking_uri
    with _token_file(location.storage) if remote is None else _token_object(remote) as token:
        request = _probe_request(token, spec.data, tracking)
        request = dataclasses.replace(request, packages=spec.packages)
        results = probe_nodes(nodes, request)
        wrote = {i for i, r in results.items() if isinstance(r, ProbeResult) and not r.storage}
        # A node that could use the object store has seen the driver's object there.
        unseen = wrote - _seen(token, wrote) if isinstance(token, Path) else set[str]()
    reports = [
        NodeReport(
            node,
            trial_capacity(compute.slots, [node.machine]),
            _problems(results[node.id], versions(spec.packages), unseen=node.id in unseen),
        )
        for node in nodes
    ]
    title = f"nodes of {compute.cluster}"
    console.print(_table(title, reports, has_server=_host_and_port(tracking) is not None))
    if failing := [r for r in reports if r.fatal]:
        raise _error(failing, location)
    used = [r.node for r in reports if r.trials]
    device = common_device(used, compute.device_type, compute.slots.gpus)
    return spec.with_compute(node_device=device)


def _probe_request(token: Path | ObjectPath, data: SearchData, tracking_uri: str) -> ProbeRequest:
    digests = {s.stem: s.digest for s in data.sources}
    compared = sorted(digests)[:: max(1, len(digests) // COMPARED_RECORDINGS)]
    return ProbeRequest(
        token=token,
        sizes={path: path.stat().st_size for path in data.paths.values()},
        digests={data.paths[stem]: digests[stem] for stem in compared[:COMPARED_RECORDINGS]},
        tracking=_host_and_port(tracking_uri),
    )


def _host_and_port(uri: str) -> tuple[str, int] | None:
    parts = urlsplit(uri)
    if not is_server(uri) or parts.hostname is None:
        return None
    return parts.hostname, parts.port or {"http": 80, "https": 443}[parts.scheme]


@contextlib.contextmanager
def _token_file(storage: Path) -> Iterator[Path]:
    """Write a file with a secret to a new folder in the storage, or where that will be."""
    folder_to_write("--storage", str(storage))
    parent = next(p for p in (storage, *storage.parents) if p.exists())
    temporary = TemporaryDirectory(prefix=".resp_tune_", dir=parent, ignore_cleanup_errors=True)
    with temporary as folder:
        token = Path(folder, "driver")
        token.parent.chmod(0o777)  # another host may know this user by another number
        token.write_text(secrets.token_hex(32))
        yield token


@contextlib.contextmanager
def _token_object(store: ObjectPath) -> Iterator[ObjectPath]:
    """Write an object `driver` with a secret below a new prefix of the store."""
    prefix = store / f".resp_tune_{secrets.token_hex(8)}"
    try:
        prefix.write(secrets.token_hex(32).encode(), "driver")
        yield prefix
    except StorageError as error:
        raise UserError(f"--storage '{store}' cannot be used ({error})") from error
    finally:
        with contextlib.suppress(StorageError):
            for name in prefix.list_sizes():
                prefix.remove(name)


def _seen(token: Path, ids: set[str]) -> set[str]:
    """Return those of `ids` whose answer the driver sees in the shared folder, soon enough."""
    expected = hashlib.sha256(token.read_bytes()).hexdigest()
    deadline = time.monotonic() + SHARED_SECONDS
    return {
        i for i in ids if shows_content(token.with_name(i), expected, deadline - time.monotonic())
    }


def _problems(
    result: ProbeResult | str, wanted: Mapping[str, str], *, unseen: bool
) -> dict[str, str | None]:
    if isinstance(result, str):
        return {"versions": result, "storage": "not probed", "data": None, "tracking": None}
    return {
        "versions": difference(result.versions, wanted),
        "storage": "its files are not visible to the driver" if unseen else result.storage,
        "data": result.data,
        "tracking": result.tracking,
    }


def _table(title: str, reports: Sequence[NodeReport], *, has_server: bool) -> Table:
    table = Table(title=title, title_justify="left", box=None)
    for name in ("node", "CPU", "GPU", "trials", *COLUMNS):
        table.add_column(name, overflow="fold")
    for report in reports:
        cells = {column: report.problems[column] or "✓" for column in COLUMNS}
        if report.problems["data"] and report.trials:
            cells["data"] += ": sent by the driver"
        if report.problems["tracking"]:
            cells["tracking"] += ": only the driver writes to it"
        if not has_server:
            cells["tracking"] = "the driver's"
        machine = report.node.machine
        counts = (str(n) if n else "–" for n in (machine.cpus, machine.gpus, report.trials))
        table.add_row(*map(escape, (str(report.node), *counts, *cells.values())))
    return table


def _error(failing: Sequence[NodeReport], location: SearchLocation) -> UserError:
    first = failing[0]
    more = f"; {len(failing) - 1} more nodes fail" if len(failing) > 1 else ""
    on_node = f"on node {first.node} {first.fatal}{more}"
    if first.problems["versions"]:
        return UserError(
            f"node {first.node} cannot run trials: {first.fatal}{more}: install there what is "
            "installed here, or take the node out of the cluster"
        )
    if location.remote is not None:
        return UserError(
            f"--storage '{location.remote}' {on_node}: give that node's Ray the store's "
            "credentials in its environment, and a route to the store"
        )
    return UserError(
        f"--storage '{location.storage}' {on_node}: give a folder that all nodes share (NFS and "
        "the like), or an object store such as s3://BUCKET"
    )
