"""What every node of a cluster must see is tried out there, before any trial."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from resp_tune.cluster.connect import Node
from resp_tune.cluster.node_probe import (
    ProbeRequest,
    ProbeResult,
    difference,
    probe_nodes,
    versions,
)
from resp_tune.cluster.node_requirements import SHARED_SECONDS, shows_content
from resp_tune.cluster.node_setup import common_device
from resp_tune.cluster.resources import trial_capacity
from resp_tune.common.paths import folder_to_write
from resp_tune.errors import UserError
from resp_tune.harness.spec import SearchSpec
from resp_tune.storage.object_store import ObjectPath, StorageError
from resp_tune.tracking.uri import is_server

TRIED = 3  # recordings whose bytes are compared; of the others the size
COLUMNS = ("versions", "storage", "data", "tracking")


@dataclass(frozen=True)
class NodeReport:
    """What a node said. Reasons by `COLUMNS`, None where all is well.

    `trials`: how many it has room for; a node without room may lack everything.
    """

    node: Node
    trials: int
    reasons: Mapping[str, str | None]

    @property
    def fatal(self) -> str | None:
        """Why no trial can run there; None where it can, or none will."""
        if not self.trials:
            return None
        found = (self.reasons[what] for what in ("versions", "storage"))
        return next((reason for reason in found if reason), None)


def check_nodes(spec: SearchSpec, console: Console) -> SearchSpec:
    """The search, knowing what its trials compute on; prints a table of the nodes.

    Raises `UserError` where a node that trials would run on has other versions or cannot reach the
    storage. Leaves nothing behind. Without a cluster there is nothing to do.
    """
    cluster, place = spec.compute.cluster, spec.location.remote
    if cluster is None:
        return spec
    with _token(spec.location.storage) if place is None else _object(place) as token:
        answers = probe_nodes(cluster.nodes, _questions(spec, token))
        answered = {
            id_ for id_, a in answers.items() if isinstance(a, ProbeResult) and not a.storage
        }
        # What a node could read and write in an object store is the driver's.
        unseen = answered - _seen(token, answered) if isinstance(token, Path) else set[str]()
    here = versions()
    reports = [
        NodeReport(
            node,
            trial_capacity(spec.compute.slots, [node.machine]),
            _reasons(answers[node.id], here, hidden=node.id in unseen),
        )
        for node in cluster.nodes
    ]
    console.print(_table(reports, spec))
    _check(reports, spec)
    used = [r.node for r in reports if r.trials]
    device = common_device(used, spec.compute.device_type, spec.compute.slots.gpus)
    return spec.with_compute(node_device=device)


def _questions(spec: SearchSpec, token: Path | ObjectPath) -> ProbeRequest:
    digests = {s.stem: s.digest for s in spec.data.sources}
    read = spec.data.paths
    tried = sorted(digests)[:: max(1, len(digests) // TRIED)][:TRIED]
    return ProbeRequest(
        token=token,
        sizes={path: path.stat().st_size for path in read.values()},
        digests={read[stem]: digests[stem] for stem in tried},
        tracking=_server(spec.location.tracking_uri),
    )


def _server(uri: str) -> tuple[str, int] | None:
    parts = urlsplit(uri)
    if not is_server(uri) or parts.hostname is None:
        return None
    return parts.hostname, parts.port or {"http": 80, "https": 443}[parts.scheme]


@contextlib.contextmanager
def _token(storage: Path) -> Iterator[Path]:
    """A file with a secret, in a folder of its own in the storage or where that will be."""
    folder_to_write("--storage", str(storage))
    place = next(p for p in (storage, *storage.parents) if p.exists())
    folder = place / f".resp_tune_{secrets.token_hex(8)}"
    try:
        folder.mkdir()
        folder.chmod(0o777)  # another host may know us by another number
        token = folder / "driver"
        token.write_text(secrets.token_hex(32))
        yield token
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _object(place: ObjectPath) -> Iterator[ObjectPath]:
    """The same in an object store: a place of its own, with the object `driver`."""
    folder = place / f".resp_tune_{secrets.token_hex(8)}"
    try:
        folder.write(secrets.token_hex(32).encode(), "driver")
        yield folder
    except StorageError as error:
        raise UserError(f"--storage '{place}' cannot be used ({error})") from error
    finally:
        with contextlib.suppress(StorageError):
            for name in folder.list_sizes():
                folder.remove(name)


def _seen(token: Path, ids: set[str]) -> set[str]:
    """Return those of `ids` whose answer the driver sees in the shared folder, soon enough."""
    expected = hashlib.sha256(token.read_bytes()).hexdigest()
    deadline = time.monotonic() + SHARED_SECONDS
    return {
        i for i in ids if shows_content(token.with_name(i), expected, deadline - time.monotonic())
    }


def _reasons(
    answer: ProbeResult | str, here: Mapping[str, str], *, hidden: bool
) -> dict[str, str | None]:
    if isinstance(answer, str):
        return {"versions": answer, "storage": "not asked", "data": None, "tracking": None}
    storage = "what it writes is not seen by the driver" if hidden else answer.storage
    return {
        "versions": difference(answer.versions, here),
        "storage": storage,
        "data": answer.data,
        "tracking": answer.tracking,
    }


def _table(reports: Sequence[NodeReport], spec: SearchSpec) -> Table:
    table = Table(title=f"nodes of {spec.compute.cluster}", title_justify="left", box=None)
    for name in ("node", "CPU", "GPU", "trials", *COLUMNS):
        table.add_column(name, overflow="fold")
    for report in reports:
        cells = [report.reasons[what] for what in COLUMNS]
        told = ["✓" if cell is None else cell for cell in cells]
        if report.reasons["data"]:
            told[2] += ": lent through Ray" if report.trials else ""
        if report.reasons["tracking"]:
            told[3] += ": only the driver writes to it"
        if _server(spec.location.tracking_uri) is None:
            told[3] = "the driver's"
        machine = report.node.machine
        counts = (str(n) if n else "–" for n in (machine.cpus, machine.gpus, report.trials))
        table.add_row(*map(escape, (str(report.node), *counts, *told)))
    return table


def _check(reports: Sequence[NodeReport], spec: SearchSpec) -> None:
    bad = [r for r in reports if r.fatal]
    if not bad:
        return
    first = bad[0]
    more = f"; {len(bad) - 1} more like it" if len(bad) > 1 else ""
    if first.reasons["versions"]:
        raise UserError(
            f"node {first.node} cannot run trials: {first.fatal}{more}: install there what is "
            "installed here, or take the node out of the cluster"
        )
    if spec.location.remote is not None:
        raise UserError(
            f"--storage '{spec.location.remote}' on node {first.node} {first.fatal}{more}: give that "
            "node's Ray the store's credentials in its environment, and a way to the store"
        )
    raise UserError(
        f"--storage '{spec.location.storage}' on node {first.node} {first.fatal}{more}: give a "
        "folder that all nodes share (NFS and the like), or an object store such as s3://BUCKET"
    )
