"""Measure many concurrent trials on logical GPUs: the share of busy slots."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.simulated_search import Step, run_simulated_search
from benchmarks.simulated_trials import Second
from benchmarks.workspace import Measurement, Workspace
from resp_tune.cluster.resources import TrialResources

ROWS = ("slots_busy",)
MIN_SLOTS = 16
SLOT_MEMORY = 0.3e9  # bytes of a Ray worker without torch


def measure(workspace: Workspace) -> Measurement:
    """Run epochs of 1 s in every slot; measure from the first epoch to the last trial's start."""
    sizes, machine = workspace.sizes, workspace.machine
    # Half of the memory is left for Ray's own processes and the page cache.
    count = max(MIN_SLOTS, min(sizes.most_slots, int(machine.memory / 2 / SLOT_MEMORY)))
    cpus = math.floor(1000 * machine.cpus / count) / 1000
    search = run_simulated_search(
        workspace,
        Second,
        trials=count * sizes.trials_a_slot,
        epochs=sizes.epochs_a_slot_trial,
        slots=TrialResources(concurrency=count, cpus=cpus, gpus=1.0, threads=1),
    )
    steps = [step for worker in search.steps_by_worker for step in worker]
    # Ray starts as many processes at once as there are cores, so the slots fill one by one.
    first_steps = sorted(worker[0][0] for worker in search.steps_by_worker)
    start, full, end = first_steps[0], first_steps[-1], search.trial_starts[-1]
    busy = busy_share(steps, count, start, end)
    busy_once_full = busy_share(steps, count, full, end)
    return Measurement(
        {"slots_busy": busy},
        {
            "slots_busy": f"{count} logical GPUs, {cpus:g} CPU each, {count * sizes.trials_a_slot} "
            f"trials of {sizes.epochs_a_slot_trial} epochs of 1 s: share of the slots' time spent "
            f"in epochs, from the first epoch to the last trial's start ({end - start:.0f} s); "
            f"{busy_once_full:.3f} after the {full - start:.0f} s until every slot had its process"
        },
        {
            "slots": count,
            "slots_seconds": end - start,
            "slots_busy_once_started": busy_once_full,
            "slots_start_seconds": full - start,
            "slots_ray_start_seconds": search.ray_seconds,
        },
    )


def busy_share(steps: Sequence[Step], slots: int, start: float, end: float) -> float:
    """Return the share of the time of `slots` slots, from `start` to `end`, spent in steps."""
    inside = (min(b, end) - max(a, start) for a, b in steps)
    return sum(s for s in inside if s > 0) / (slots * (end - start))
