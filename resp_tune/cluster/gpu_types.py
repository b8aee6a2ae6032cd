"""The types of GPU in a cluster, where each takes another number of trials.

A type is the resource that only its nodes have: `accelerator_type:T4`, as Ray calls what it knows.
What Ray has no name for is a type of its own on each node, `node:10.0.0.7`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping

from resp_tune.cluster.resources import TrialResources

NAMED = "accelerator_type:"
SLIVER = 0.001  # of that resource: it says where a trial may run, and never how many


def type_of(resources: Iterable[str], address: str) -> str:
    """The type of a node with these resources."""
    return min((name for name in resources if name.startswith(NAMED)), default=f"node:{address}")


def called(gpu_type: str) -> str:
    """The type in words: `T4`, or the address of a node whose GPUs have no name."""
    return gpu_type.partition(":")[2]


def bundle(gpu_type: str, slots: TrialResources) -> dict[str, float]:
    """What a trial on a GPU of that type asks Ray for."""
    return {"CPU": slots.cpus, "GPU": slots.gpus, gpu_type: SLIVER}


def next_type(
    slots: Mapping[str, TrialResources],
    room: Mapping[str, int],
    held: Iterable[str],
    gpus: int | None,
) -> str | None:
    """Where the next trial runs: the type of which most is free; None where there is no room.

    `room`: trials that each type has room for. `held`: the types of those that run. `gpus`: that
    trials may hold at once, None for all.
    """
    running = Counter(held)
    used = sum(slots[name].gpus * count for name, count in running.items())
    left = math.inf if gpus is None else gpus - used + 1e-6
    free = {
        name: round((room[name] - running[name]) * slots[name].gpus, 6)
        for name in sorted(room)
        if slots[name].gpus <= left
    }
    best = max(free, key=free.__getitem__, default=None)
    return best if best is not None and free[best] > 0 else None
