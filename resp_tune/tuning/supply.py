"""Before the first trial every node of a cluster gets what it lacks: recordings, filled caches."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resp_tune.config import FrontEnd
from resp_tune.data import handed_out
from resp_tune.errors import RunError
from resp_tune.tuning.joining import Node

if TYPE_CHECKING:
    from resp_tune.learning.problem import Stores

BATCH_BYTES = 64_000_000  # recordings that are on their way at once


@dataclass(frozen=True)
class Filling:
    """What filling a node's cache took: wall time, and how many front ends it did not have."""

    node: Node
    seconds: float
    computed: int


class _Keeper:
    """Runs on a node, beside its trials."""

    def missing(self, wanted: list[tuple[str, str]]) -> list[str]:
        return handed_out.missing(wanted)

    def keep(self, recordings: list[tuple[bytes, str]]) -> None:
        for content, suffix in recordings:
            handed_out.keep(content, suffix)

    def fill(self, stores: Stores, front_ends: list[FrontEnd], workers: int) -> tuple[float, int]:
        begun = time.monotonic()
        computed = stores.fill(front_ends, workers=workers).computed
        return time.monotonic() - begun, len(computed)


def hand_out(nodes: Sequence[Node], recordings: Mapping[str, Path]) -> int:
    """Send `recordings`, files by their SHA-256, to `nodes`; bytes sent, none to whom has them.

    Raises `RunError` where a node cannot keep them.
    """
    import ray

    keepers = [_keeper(node) for node in nodes]
    wanted = [(digest, path.suffix) for digest, path in recordings.items()]
    lacking = [set(have) for have in _get(keepers, [k.missing.remote(wanted) for k in keepers])]
    sent = 0
    for batch in _batches({d: p for d, p in recordings.items() if any(d in s for s in lacking)}):
        content = [(recordings[digest].read_bytes(), recordings[digest].suffix) for digest in batch]
        reference = ray.put(content)  # once, however many nodes take it
        takers = [k for k, s in zip(keepers, lacking, strict=True) if not s.isdisjoint(batch)]
        _get(takers, [keeper.keep.remote(reference) for keeper in takers])
        sent += sum(len(data) for data, _ in content) * len(takers)
    for keeper in keepers:
        ray.kill(keeper)
    return sent


def fill_caches(
    nodes: Sequence[Node], stores: Stores, front_ends: Sequence[FrontEnd]
) -> list[Filling]:
    """Fill the feature cache of every node, all at once; raises `RunError` where one cannot."""
    import ray

    keepers = [_keeper(node) for node in nodes]
    asked = [
        keeper.fill.remote(stores, list(front_ends), max(1, node.machine.cpus))
        for keeper, node in zip(keepers, nodes, strict=True)
    ]
    done = _get(keepers, asked)
    for keeper in keepers:
        ray.kill(keeper)
    return [Filling(node, *found) for node, found in zip(nodes, done, strict=True)]


def _keeper(node: Node) -> Any:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    made: Any = ray.remote(num_cpus=0, max_restarts=0)(_Keeper)
    where = NodeAffinitySchedulingStrategy(node.id, soft=False)
    return made.options(scheduling_strategy=where).remote()


def _get(keepers: Sequence[Any], references: Sequence[Any]) -> list[Any]:
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


def _batches(recordings: Mapping[str, Path]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for digest, path in recordings.items():
        size += path.stat().st_size
        batch.append(digest)
        if size > BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
