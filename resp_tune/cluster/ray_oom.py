"""A worker that Ray's memory monitor has ended is a lost worker, and not the end of the search.

Ray Tune 2.60 knows a dead worker by `RayActorError`. What the monitor ends in the middle of a call
comes as `OutOfMemoryError`, which is none, and it gives up all trials ("unexpected exception").
"""

from __future__ import annotations

from typing import Any


def mend() -> None:
    """Let Ray Tune handle it as any lost worker; again has no effect."""
    from ray.air.execution._internal.actor_manager import RayActorManager
    from ray.exceptions import OutOfMemoryError, RayActorError

    told = RayActorManager._actor_task_failed
    if told.__module__ == __name__:
        return

    def _actor_task_failed(self: Any, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, OutOfMemoryError):
            exception = RayActorError(error_msg=f"OutOfMemoryError: {exception}")
        told(self, tracked_actor_task, exception)

    RayActorManager._actor_task_failed = _actor_task_failed  # type: ignore[method-assign]  # it has no hook
