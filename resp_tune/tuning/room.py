"""How many trials a cluster has room for now: nodes join, and are lost."""

from __future__ import annotations

import time

from resp_tune.tuning.joining import nodes_now
from resp_tune.tuning.plan import Slots, room_for

LOOK_SECONDS = 1.0


class Room:
    """Called, the number of trials that may run at once: `most` at most, where that is given."""

    def __init__(self, slots: Slots, most: int | None) -> None:
        self.slots, self.most = slots, most
        self.looked = -LOOK_SECONDS
        self.found = 0

    def __call__(self) -> int:
        """What was found within the last second counts still."""
        if (now := time.monotonic()) - self.looked >= LOOK_SECONDS:
            self.found = room_for(self.slots, [node.machine for node in nodes_now()])
            self.looked = now
        return self.found if self.most is None else min(self.found, self.most)
