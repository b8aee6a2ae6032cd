"""How many trials a cluster can hold now, as nodes join and are lost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from resp_tune.cluster.connect import Node, live_nodes
from resp_tune.cluster.resources import TrialResources, trial_capacity

CACHED_SECONDS = 1.0


def cluster_capacity(
    slots: TrialResources,
    limit: int | None,
    nodes: Callable[[], Sequence[Node]] = live_nodes,
) -> Callable[[], int]:
    """Return a function that counts how many trials may run now, `limit` at most.

    It looks at the live nodes at most once a second, however often Ray Tune calls it.
    """
    capacity, counted_at = 0, -CACHED_SECONDS

    def count() -> int:
        nonlocal capacity, counted_at
        if (now := time.monotonic()) - counted_at >= CACHED_SECONDS:
            capacity = trial_capacity(slots, [node.machine for node in nodes()])
            counted_at = now
        return capacity if limit is None else min(capacity, limit)

    return count
