"""What the nodes of a cluster lack is brought to them: recordings, filled caches."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resp_tune.cluster.connect import Node
from resp_tune.cluster.received_recordings import keep, kept
from resp_tune.config import FrontEnd
from resp_tune.errors import RunError
from resp_tune.training.compute_device import (
    ComputeDevice,
    common_compute_device,
    detect_compute_device,
)
from resp_tune.training.datamodule import load_unchanged

if TYPE_CHECKING:
    import torch

    from resp_tune.training.datamodule import FeatureCaches

READ_AT_ONCE = 4


@dataclass(frozen=True)
class Filling:
    """What filling a node's cache took: wall time, and how many front ends it did not have."""

    node: Node
    seconds: float
    computed: int


class RecordingServer:
    """The recordings of a search, lent by the driver's machine to nodes that cannot see them."""

    def __init__(self, recordings: Mapping[str, Path]) -> None:
        """`recordings`: files by their SHA-256."""
        import ray

        made: Any = ray.remote(num_cpus=0)(_RecordingActor)
        here = on_node(ray.get_runtime_context().get_node_id())
        lender = made.options(scheduling_strategy=here, max_concurrency=READ_AT_ONCE)
        self._lender = lender.remote(dict(recordings))

    def lending(self, caches: FeatureCaches, recordings: Mapping[str, Path]) -> FeatureCaches:
        """`caches`, whose recordings are borrowed where they are not seen."""
        sources = tuple(
            dataclasses.replace(
                s, load=partial(_load_or_borrow, recordings[s.digest], s.digest, self._lender)
            )
            for s in caches.sources
        )
        return dataclasses.replace(caches, sources=sources)

    def lent(self) -> int:
        """Bytes that nodes have borrowed up to now."""
        import ray

        found: int = ray.get(self._lender.lent.remote())
        return found


class _RecordingActor:
    """Runs on the driver's machine."""

    def __init__(self, recordings: dict[str, Path]) -> None:
        self.recordings, self.bytes = recordings, 0

    def read(self, digest: str) -> bytes:
        content = self.recordings[digest].read_bytes()
        self.bytes += len(content)
        return content

    def lent(self) -> int:
        return self.bytes


def _load_or_borrow(path: Path, digest: str, lender: Any, sample_rate: int) -> torch.Tensor:
    """The recording from its own place, else from what was borrowed; `RunError` as of that."""
    import ray

    copy = kept(digest, path.suffix)
    if not copy.exists():
        try:
            return load_unchanged(path, digest, sample_rate)
        except RunError as unseen:
            try:
                content = ray.get(lender.read.remote(digest))
            except ray.exceptions.RayError:
                raise unseen from None  # nor does the driver's machine see it any more
            if keep(content, path.suffix) != copy:
                raise  # it has changed there
    return load_unchanged(copy, digest, sample_rate)


class _NodeAgent:
    """Runs on a node, beside its trials."""

    def device(self, device_type: str) -> ComputeDevice:
        return detect_compute_device(device_type)

    def fill(
        self, caches: FeatureCaches, front_ends: list[FrontEnd], workers: int
    ) -> tuple[float, int]:
        begun = time.monotonic()
        computed = caches.fill(front_ends, workers=workers).computed
        return time.monotonic() - begun, len(computed)


def device_of(nodes: Sequence[Node], device_type: str, gpus: float) -> ComputeDevice:
    """What a trial that is given `gpus` of a GPU may compute on, whichever of `nodes` it is on."""
    import ray

    stewards = [_steward(node, gpus=gpus) for node in nodes]
    found = _get([steward.device.remote(device_type) for steward in stewards])
    for steward in stewards:
        ray.kill(steward)
    return common_compute_device(found)


def fill_caches(
    nodes: Sequence[Node], caches: FeatureCaches, front_ends: Sequence[FrontEnd]
) -> list[Filling]:
    """Fill the feature cache of every node, all at once; raises `RunError` where one cannot."""
    import ray

    stewards = [_steward(node) for node in nodes]
    asked = [
        steward.fill.remote(caches, list(front_ends), max(1, node.machine.cpus))
        for steward, node in zip(stewards, nodes, strict=True)
    ]
    done = _get(asked)
    for steward in stewards:
        ray.kill(steward)
    return [Filling(node, *found) for node, found in zip(nodes, done, strict=True)]


def _steward(node: Node, gpus: float = 0.0) -> Any:
    import ray

    made: Any = ray.remote(num_cpus=0, num_gpus=gpus, max_restarts=0)(_NodeAgent)
    return made.options(scheduling_strategy=on_node(node.id)).remote()


def on_node(node_id: str) -> Any:
    """Return Ray's scheduling strategy for an actor that must run on the node `node_id`."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(node_id, soft=False)


def _get(references: Sequence[Any]) -> list[Any]:
    import ray

    try:
        return list(ray.get(list(references)))
    except ray.exceptions.RayTaskError as error:
        # What it was raised from there: a full disk, a recording that has changed.
        cause = " ".join(str(error.cause).split())
        raise RunError(f"a node could not be made ready: {cause}") from error
    except ray.exceptions.RayError as error:
        cause = " ".join(str(error).split())[:200]
        raise RunError(
            f"a node was lost while it was made ready ({cause}): type the same command again"
        ) from error
