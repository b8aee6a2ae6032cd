"""Send files to nodes that cannot read them, and fill the feature caches of the nodes."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from resp_tune.cluster.connect import Node
from resp_tune.cluster.node_calls import call_on_nodes
from resp_tune.common.paths import cache_folder, write_atomically
from resp_tune.config import AnyFrontEnd, Resampling
from resp_tune.encoders.encoder_file import Encoder, read_unchanged
from resp_tune.errors import RunError
from resp_tune.features.cache import FeatureCaches
from resp_tune.training.compute_device import (
    ComputeDevice,
    common_compute_device,
    detect_compute_device,
)
from resp_tune.training.datamodule import load_unchanged

log = logging.getLogger(__name__)

CONCURRENT_READS = 4
T = TypeVar("T")


class RecordingServer:
    """Serve the recordings of a search from the driver's machine to nodes that lack them.

    Encoders too: they are files that trials read.
    """

    def __init__(self, recordings: Mapping[str, Path]) -> None:
        """Start an actor on this machine; `recordings` holds paths by SHA-256."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        actor: Any = ray.remote(num_cpus=0)(_RecordingActor)
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._actor = actor.options(
            scheduling_strategy=here, max_concurrency=CONCURRENT_READS
        ).remote(dict(recordings))
        self._recordings = recordings

    def serve(self, caches: FeatureCaches) -> FeatureCaches:
        """Return `caches` that fetch a recording from the driver where its path is not readable."""

        def load(digest: str) -> Callable[[int, Resampling], torch.Tensor]:
            return partial(_load_or_fetch, self._recordings[digest], digest, self._actor)

        def read(encoder: Encoder) -> Callable[[], bytes]:
            return partial(_use_or_fetch, encoder.path, encoder.sha256, self._actor, read_unchanged)

        sources = tuple(dataclasses.replace(s, load=load(s.digest)) for s in caches.sources)
        encoders = tuple(dataclasses.replace(e, read=read(e)) for e in caches.encoders)
        return dataclasses.replace(caches, sources=sources, encoders=encoders)

    def bytes_sent(self) -> int:
        """Return the bytes that nodes have fetched so far."""
        import ray

        return int(ray.get(self._actor.bytes_sent.remote()))


class _RecordingActor:
    def __init__(self, recordings: dict[str, Path]) -> None:
        self.recordings, self.sent = recordings, 0

    def read(self, digest: str) -> bytes:
        content = self.recordings[digest].read_bytes()
        self.sent += len(content)
        return content

    def bytes_sent(self) -> int:
        return self.sent


def _load_or_fetch(
    path: Path, digest: str, actor: Any, sample_rate: int, resampling: Resampling
) -> torch.Tensor:
    """Return the waveform of a recording that may have to be fetched from the driver."""

    def load(path: Path, digest: str) -> torch.Tensor:
        return load_unchanged(path, digest, sample_rate, resampling)

    return _use_or_fetch(path, digest, actor, load)


def _use_or_fetch(path: Path, digest: str, actor: Any, use: Callable[[Path, str], T]) -> T:
    """Use a file at its path, or in this node's cache, fetched from the driver first.

    Raises the `RunError` of its path if the driver cannot read it either, or reads other bytes.
    """
    import ray

    # Content-addressed: another process of this node may write the same file at the same time.
    copy = cache_folder() / "recordings" / f"{digest}{path.suffix}"
    if not copy.exists():
        try:
            return use(path, digest)
        except RunError as unreadable:
            try:
                content = ray.get(actor.read.remote(digest))
            except ray.exceptions.RayError:
                raise unreadable from None
            if hashlib.sha256(content).hexdigest() != digest:
                raise
            copy.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(copy, content)
    return use(copy, digest)


def common_device(nodes: Sequence[Node], device_type: str, gpus: float) -> ComputeDevice:
    """Return what trials with `gpus` of a GPU can rely on, whichever of `nodes` they run on."""
    arguments = {node.id: (device_type,) for node in nodes}
    return common_compute_device(_call(detect_compute_device, arguments, gpus))


def fill_caches(
    nodes: Sequence[Node], caches: FeatureCaches, front_ends: Sequence[AnyFrontEnd]
) -> None:
    """Fill the feature caches of all nodes at the same time; raises `RunError` if one fails."""
    arguments = {n.id: (caches, list(front_ends), max(1, n.machine.cpus)) for n in nodes}
    for node, (seconds, computed) in zip(nodes, _call(_fill, arguments), strict=True):
        done = f"{computed} front ends computed" if computed else "was full"
        log.info(f"cache of {node}: {done}, {seconds:.1f} s")


def _fill(caches: FeatureCaches, front_ends: list[AnyFrontEnd], workers: int) -> tuple[float, int]:
    begun = time.monotonic()
    computed = caches.fill(front_ends, workers=workers)
    return time.monotonic() - begun, len(computed)


def _call(
    function: Callable[..., Any], arguments: Mapping[str, tuple[Any, ...]], gpus: float = 0.0
) -> list[Any]:
    from ray.exceptions import RayError

    results = list(call_on_nodes(function, arguments, gpus=gpus).values())
    for error in (result for result in results if isinstance(result, Exception)):
        cause = " ".join(str(error).split())[:400]
        if isinstance(error, RayError):
            raise RunError(
                f"a node was lost while it was prepared ({cause}): rerun the same command"
            ) from error
        raise RunError(f"a node could not be prepared: {cause}") from error
    return results
