"""How many trials a cluster has room for now: nodes join, and are lost."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from resp_tune.cluster.connect import Node, nodes_now
from resp_tune.cluster.gpu_types import called, next_type
from resp_tune.cluster.resources import TrialResources, room_for

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0


class LiveNodes:
    """Called, the nodes of the cluster; what was found within the last second counts still."""

    def __init__(self) -> None:
        self.looked = -LOOK_SECONDS
        self.found: Sequence[Node] = ()

    def __call__(self) -> Sequence[Node]:
        """The nodes that live."""
        if (now := time.monotonic()) - self.looked >= LOOK_SECONDS:
            self.found = nodes_now()
            self.looked = now
        return self.found


class ClusterCapacity:
    """Called, the number of trials that may run at once: `most` at most, where that is given."""

    def __init__(
        self,
        slots: TrialResources,
        most: int | None,
        nodes: Callable[[], Sequence[Node]] | None = None,
    ) -> None:
        self.slots, self.most = slots, most
        self.nodes = nodes or LiveNodes()

    def __call__(self) -> int:
        """As many as the nodes that live have room for."""
        found = room_for(self.slots, [node.machine for node in self.nodes()])
        return found if self.most is None else min(found, self.most)


class TypedRoom:
    """The same where types of GPU take different numbers of trials, with a type for each trial.

    `measured`: the slots of each type. `whole`: those of types that nobody has measured, a trial on
    each GPU, which is said when a node of such a type joins. `gpus`, `most`: GPUs that trials may
    hold, and trials that may run, at once; None for all.
    """

    def __init__(
        self,
        measured: Mapping[str, TrialResources],
        whole: TrialResources,
        *,
        gpus: int | None,
        most: int | None,
        nodes: Callable[[], Sequence[Node]] | None = None,
    ) -> None:
        self.slots = dict(measured)
        self.whole, self.gpus, self.most = whole, gpus, most
        self.nodes = nodes or LiveNodes()
        self.counted: Sequence[Node] | None = None
        self.room: dict[str, int] = {}

    def _by_type(self) -> dict[str, int]:
        """Asked many times a second, and counted anew when there is news of the nodes."""
        if (nodes := self.nodes()) is not self.counted:
            self.counted, self.room = nodes, self._count(nodes)
        return self.room

    def _count(self, nodes: Sequence[Node]) -> dict[str, int]:
        found: dict[str, int] = {}
        for node in nodes:
            if not node.machine.gpus:
                continue
            if node.gpu_type not in self.slots:
                self.slots[node.gpu_type] = self.whole
                log.info(
                    f"trials per GPU: 1 on {called(node.gpu_type)}, which joined after the others "
                    "were measured"
                )
            here = room_for(self.slots[node.gpu_type], [node.machine])
            found[node.gpu_type] = found.get(node.gpu_type, 0) + here
        return found

    def __call__(self) -> int:
        """As many as the nodes that live have room for."""
        found = sum(self._by_type().values())
        return found if self.most is None else min(found, self.most)

    def next_type(self, held: Iterable[str]) -> str | None:
        """The type for the next trial beside those that run on types `held`, None without room."""
        return next_type(self.slots, self._by_type(), held, self.gpus)

    def gone(self, held: Iterable[str]) -> list[str]:
        """Those of the types `held` that no living node has, where trials could go elsewhere."""
        room = self._by_type()
        return sorted({name for name in held if not room.get(name)}) if any(room.values()) else []
