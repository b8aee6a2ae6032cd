"""What each node of a cluster sees: its versions, the storage, the recordings, the tracking server.

The code that runs there is shipped as it is, so that it also tells of nodes without `resp_tune`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import platform
import socket
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resp_tune.cluster.connect import Node
from resp_tune.storage.object_store import ObjectPath

ANSWER_SECONDS = 60.0
PACKAGES = ("torch", "ray", "resp_tune")


@dataclass(frozen=True)
class ProbeRequest:
    """`token`: a file that the driver has written in a folder of its own in the storage, or the
    object `driver` in a place of its own. A node answers beside it, in a file named by the node's
    id, with its hash.

    `sizes`: the bytes of every recording by path, `digests`: SHA-256 of a few of them.
    `tracking`: host and port of the server, None where it is a file.
    """

    token: Path | ObjectPath
    sizes: Mapping[Path, int]
    digests: Mapping[Path, str]
    tracking: tuple[str, int] | None


@dataclass(frozen=True)
class ProbeResult:
    """What a node said. Reasons are None where all is well."""

    versions: Mapping[str, str]  # of Python and `PACKAGES`; `source`, a hash of resp_tune's code
    storage: str | None
    data: str | None
    tracking: str | None


def ask(nodes: Sequence[Node], questions: ProbeRequest) -> dict[str, ProbeResult | str]:
    """Each node's answer by its id, or why there is none within `ANSWER_SECONDS`."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    module = sys.modules[__name__]
    # A node that lacks this module, or has another version of it, can answer all the same.
    ray.cloudpickle.register_pickle_by_value(module)  # type: ignore[no-untyped-call]  # Ray's
    try:
        actor: Any = ray.remote(num_cpus=0, max_restarts=0)(_Probe)
        witnesses = {
            node.id: actor.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)
            ).remote()
            for node in nodes
        }
        token = questions.token
        given = (
            (token.uri, token.below) if isinstance(token, ObjectPath) else str(token),
            {str(path): size for path, size in questions.sizes.items()},
            {str(path): digest for path, digest in questions.digests.items()},
            questions.tracking,
        )
        asked = {id_: witness.tell.remote(id_, *given) for id_, witness in witnesses.items()}
        ray.wait(list(asked.values()), num_returns=len(asked), timeout=ANSWER_SECONDS)
        answers = {id_: _answer(reference) for id_, reference in asked.items()}
        for witness in witnesses.values():
            ray.kill(witness)
        return answers
    finally:
        ray.cloudpickle.unregister_pickle_by_value(module)  # type: ignore[no-untyped-call]  # Ray's


def _answer(reference: Any) -> ProbeResult | str:
    import ray

    try:
        return ProbeResult(**ray.get(reference, timeout=0))
    except ray.exceptions.GetTimeoutError:
        return f"no answer within {ANSWER_SECONDS:g} s"
    except ray.exceptions.RayError as error:
        return " ".join(str(error).split())[:200]


class _Probe:
    """Runs on a node; uses nothing but the standard library, unless the storage is no folder."""

    def tell(
        self,
        node_id: str,
        token: str | tuple[str, str],
        sizes: dict[str, int],
        digests: dict[str, str],
        tracking: tuple[str, int] | None,
    ) -> dict[str, Any]:
        return {
            "versions": versions(),
            "storage": _folder(Path(token), node_id)
            if isinstance(token, str)
            else _place(*token, node_id),
            "data": _data(sizes, digests),
            "tracking": None if tracking is None else _reach(tracking),
        }


def versions() -> dict[str, str]:
    """Of Python and `PACKAGES`, without the part that names a build; `source`: of our own code."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            found[package] = "missing"
    # A copy that is only on the path, as Ray ships working folders, has no metadata.
    spec = importlib.util.find_spec("resp_tune")
    if spec is not None and spec.submodule_search_locations:
        folder = Path(next(iter(spec.submodule_search_locations)))
        found["source"] = _source(folder)
    return found


def difference(there: Mapping[str, str], here: Mapping[str, str]) -> str | None:
    """What differs in `versions` from `here`, in words; None where nothing does."""
    found = []
    for name, own in here.items():
        other = there.get(name, "missing")
        if other == own:
            continue
        if name == "source":
            if there.get("resp_tune") == here.get("resp_tune"):
                found.append("other code of resp_tune under the same version")
        else:
            found.append(f"{name} {other} (here {own})")
    return ", ".join(found) or None


def _source(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def _place(uri: str, below: str, node_id: str) -> str | None:
    try:
        from resp_tune.storage.object_store import ObjectPath, StorageError
    except ImportError as error:
        return f"cannot be asked ({error})"
    place = ObjectPath(uri, below)
    try:
        content = place.read("driver")
        if content is None:
            return "is not the driver's"
        place.write(hashlib.sha256(content).hexdigest().encode(), node_id)
    except StorageError as error:
        return f"cannot be used ({error})"
    return None


def _folder(token: Path, node_id: str) -> str | None:
    try:
        content = token.read_bytes()
    except OSError as error:
        return f"is not the driver's folder ({error.strerror})"
    try:
        token.with_name(node_id).write_text(hashlib.sha256(content).hexdigest())
    except OSError as error:
        return f"cannot be written ({error.strerror})"
    return None


def _data(sizes: dict[str, int], digests: dict[str, str]) -> str | None:
    missing = [path for path, size in sizes.items() if _size(path) != size]
    if missing:
        return f"{len(missing)} of {len(sizes)} recordings not seen"
    for path, digest in digests.items():
        with Path(path).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                return f"{Path(path).name} is another file there"
    return None


def _size(path: str) -> int | None:
    try:
        return Path(path).stat().st_size
    except OSError:
        return None


def _reach(server: tuple[str, int]) -> str | None:
    try:
        with socket.create_connection(server, timeout=5.0):
            return None
    except OSError as error:
        return f"{server[0]}:{server[1]} not reached ({error.strerror or error})"
