"""Trials side by side on a GPU of each type in a cluster, measured by processes that run there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from resp_tune.cluster.gpu_types import SLIVER, called
from resp_tune.cluster.resources import TrialResources
from resp_tune.config import TrialConfig
from resp_tune.errors import RunError

if TYPE_CHECKING:
    from resp_tune.execution.trials_per_gpu import PackingResult, Workload


class _BenchmarkActor:
    """Runs on a node, which lends it one GPU and the cores that belong to it."""

    def measure(
        self, config: TrialConfig, load: Workload, threads: dict[int, int], epochs: int
    ) -> list[PackingResult]:
        from resp_tune.execution.trials_per_gpu import measure_all

        return list(measure_all(config, load, "cuda", threads=threads, epochs=epochs))


def measure_types(
    divided: Mapping[str, Mapping[int, TrialResources]],
    config: TrialConfig,
    load: Workload,
    *,
    epochs: int,
) -> dict[str, list[PackingResult]]:
    """What trials of `config` side by side reached on a node of each type, all types at once.

    `divided`: the slots of a type's machines by the number of trials on each GPU, from 1.
    Raises `RunError` where a type cannot be measured.
    """
    import ray

    # By actors: of a host that is cut off, Ray gives those up, but not plain tasks.
    gauges: dict[str, Any] = {}
    for name, slots in divided.items():
        made: Any = ray.remote(
            num_cpus=slots[1].cpus, num_gpus=1, resources={name: SLIVER}, max_restarts=0
        )(_BenchmarkActor)
        gauges[name] = made.remote()
    asked = {
        name: gauge.measure.remote(
            config, load, {n: slots.threads for n, slots in divided[name].items()}, epochs
        )
        for name, gauge in gauges.items()
    }
    try:
        told = {name: _outcome(name, reference) for name, reference in asked.items()}
    finally:
        for gauge in gauges.values():
            ray.kill(gauge)
    for outcome in told.values():
        if isinstance(outcome, RunError):
            raise outcome
    return {name: found for name, found in told.items() if not isinstance(found, RunError)}


def _outcome(name: str, reference: Any) -> list[PackingResult] | RunError:
    """What was measured, or why it was not: Ray prints the traceback of a failure not fetched."""
    import ray

    try:
        found: list[PackingResult] = ray.get(reference)
    except ray.exceptions.RayError as error:
        cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
        return RunError(
            f"trials per GPU could not be measured on {called(name)}, so none was started: "
            + " ".join(f"{type(cause).__name__}: {cause}".split())[:400]
        )
    return found
