"""Call a function on the nodes of a cluster."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def call_on_nodes(
    function: Callable[..., Any],
    arguments: Mapping[str, tuple[Any, ...]],
    *,
    cpus: float = 0.0,
    gpus: float = 0.0,
    timeout: float | None = None,
) -> dict[str, Any]:
    """Call `function` on all nodes at once, with `arguments` by node id; return results by id.

    A call gets `cpus` cores and `gpus` of its node. The result of a failed call is its exception:
    what `function` raised, or a `RayError` for a lost node and after `timeout` seconds.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Actors, not tasks: when a host is cut off, Ray gives up actors, but not plain tasks.
    actor: Any = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0)(Caller)
    actors = {
        node_id: actor.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)
        ).remote()
        for node_id in arguments
    }
    try:
        calls = {i: actors[i].call.remote(function, *values) for i, values in arguments.items()}
        ray.wait(list(calls.values()), num_returns=len(calls), timeout=timeout)
        return {node_id: _result(call) for node_id, call in calls.items()}
    finally:
        for each in actors.values():
            ray.kill(each)


class Caller:
    """The actor that calls any function in its process."""

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what `function` returns."""
        return function(*arguments)


def _result(call: Any) -> Any:
    import ray

    try:
        return ray.get(call, timeout=0)
    except ray.exceptions.RayTaskError as error:
        return error.cause
    except ray.exceptions.RayError as error:
        return error
