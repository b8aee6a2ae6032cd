"""Many trials at once on logical GPUs: how many of the slots are at work."""

from __future__ import annotations

import math
from collections.abc import Sequence

from benchmarks.driver import Step, drive
from benchmarks.simulated import Second
from benchmarks.workplace import Findings, Workplace
from resp_tune.cluster.resources import TrialResources

ROWS = ("slots_busy",)
LEAST_SLOTS = 16
SLOT_MEMORY = 0.3e9  # bytes: a Ray worker that has imported no torch


def measure(place: Workplace) -> Findings:
    """Epochs of 1 s in every slot, from the first one's start to the last hand-out."""
    sizes, machine = place.sizes, place.machine
    # Half of the memory: Ray's own processes and the page cache live there too.
    count = max(LEAST_SLOTS, min(sizes.most_slots, int(machine.memory / 2 / SLOT_MEMORY)))
    cpus = math.floor(1000 * machine.cpus / count) / 1000
    driven = drive(
        place,
        Second,
        trials=count * sizes.trials_a_slot,
        epochs=sizes.epochs_a_slot_trial,
        slots=TrialResources(concurrency=count, cpus=cpus, gpus=1.0, threads=1),
    )
    steps = [step for worker in driven.workers for step in worker]
    # Ray starts as many processes at once as there are cores: the other slots wait for theirs.
    first = sorted(worker[0][0] for worker in driven.workers)
    started, full, end = first[0], first[-1], driven.handed_out[-1]
    busy = busy_share(steps, count, started, end)
    after = busy_share(steps, count, full, end)
    return Findings(
        {"slots_busy": busy},
        {
            "slots_busy": f"{count} logical GPUs, {cpus:g} CPU each, {count * sizes.trials_a_slot} "
            f"trials of {sizes.epochs_a_slot_trial} epochs of 1 s: share of slot seconds spent in "
            f"epochs, from the first epoch to the last hand-out ({end - started:.0f} s); "
            f"{after:.3f} after the {full - started:.0f} s until every slot had its process"
        },
        {
            "slots": count,
            "slots_seconds": end - started,
            "slots_busy_once_started": after,
            "slots_start_seconds": full - started,
            "slots_ray_start_seconds": driven.ray_seconds,
        },
    )


def busy_share(steps: Sequence[Step], slots: int, start: float, end: float) -> float:
    """Seconds of steps inside `start..end` over the seconds that `slots` slots have there."""
    inside = (min(b, end) - max(a, start) for a, b in steps)
    return sum(s for s in inside if s > 0) / (slots * (end - start))
