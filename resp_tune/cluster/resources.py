"""How many trials run at once, and what each is given."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from resp_tune.errors import UserError

THIS_MACHINE = "this machine"
LOGICAL_GPUS = "RESP_TUNE_LOGICAL_GPUS"  # "1": GPUs are counted, and trials run on the CPU
LEAST_CPUS = 0.01
TRIAL_MEMORY = 1.5e9  # bytes: torch, Ray's worker and a batch of the notebook's size


@dataclass(frozen=True)
class Machine:
    """What trials may use of one machine."""

    cpus: int
    gpus: int
    memory: int  # bytes free


@dataclass(frozen=True)
class TrialResources:
    """`concurrency` trials at once, each with `cpus` cores, `threads` of them busy, and `gpus`."""

    concurrency: int
    cpus: float
    gpus: float
    threads: int

    def __str__(self) -> str:
        each = f"{self.cpus:g} CPU" + (f" and {self.gpus:g} GPU" if self.gpus else "")
        return f"{self.concurrency} trial{'s' * (self.concurrency > 1)} at once, each on {each}"


def this_machine() -> Machine:
    """Cores that this process may run on, GPUs that torch sees, free memory."""
    import torch

    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(cpus, torch.cuda.device_count(), psutil.virtual_memory().available)


def plan_slots(
    machines: Sequence[Machine],
    where: str = THIS_MACHINE,
    *,
    gpus: int | None,
    trials_per_gpu: int,
    concurrency: int | None,
    cpus_per_trial: float | None,
    logical_gpus: bool,
) -> TrialResources:
    """Divide `machines` among trials, each of which runs on one; `UserError` when they are too few.

    `gpus` None means all there are. With `logical_gpus` GPUs are counted but not needed. `where`
    is what errors call the machines together.
    """
    has = sum(m.gpus for m in machines)
    if gpus is None:
        gpus = has
    elif gpus > has and not logical_gpus:
        raise UserError(
            f"--gpus {gpus}: {where} has {has or 'no'} GPU{'s' * (has > 1)} that torch can use; "
            f"give --gpus {has}{' for the CPU' if not has else ''}, or set "
            "RESP_TUNE_LOGICAL_GPUS=1 to rehearse"
        )
    if cpus_per_trial is not None and cpus_per_trial < LEAST_CPUS:
        raise UserError(f"--cpus-per-trial {cpus_per_trial:g} is below {LEAST_CPUS:g}")
    if gpus:
        # Rehearsed GPUs that no machine has are all on the first.
        places = [(m.cpus, m.gpus * trials_per_gpu) for m in machines if m.gpus]
        if gpus > has:
            places = [(machines[0].cpus, gpus * trials_per_gpu)]
        most = gpus * trials_per_gpu
        slots = min(concurrency or most, most)
        if cpus_per_trial is None:
            cpus_per_trial = _gpu_share(places, slots)
        room = sum(min(_fit(cpus, cpus_per_trial), here) for cpus, here in places)
    else:
        cores = [m.cpus for m in machines]
        if concurrency is not None:
            slots = concurrency
        elif cpus_per_trial is not None:
            slots = sum(_fit(c, cpus_per_trial) for c in cores)
        else:
            # One thread a trial: two side by side finish sooner than one with two threads.
            slots = sum(min(m.cpus, max(1, int(m.memory / TRIAL_MEMORY))) for m in machines)
        if cpus_per_trial is None:
            cpus_per_trial = _cpu_share(cores, max(slots, 1))
        room = sum(_fit(c, cpus_per_trial) for c in cores)
    if room < max(slots, 1) or cpus_per_trial < LEAST_CPUS:
        raise UserError(
            f"{max(slots, 1)} trials at once with {cpus_per_trial:g} CPUs each need more than the "
            f"{sum(m.cpus for m in machines)} CPUs of {where}: lower --concurrency or "
            "--cpus-per-trial"
        )
    gpu_share = 1 / trials_per_gpu if gpus else 0.0
    return TrialResources(slots, cpus_per_trial, gpu_share, max(1, int(cpus_per_trial)))


def room_for(slots: TrialResources, machines: Sequence[Machine]) -> int:
    """Trials that `machines` have room for at once, each as `slots` says."""
    room = (_fit(m.cpus, slots.cpus) for m in machines)
    if not slots.gpus:
        return sum(room)
    return sum(min(fit, _fit(m.gpus, slots.gpus)) for fit, m in zip(room, machines, strict=True))


def _fit(has: float, each: float) -> int:
    return math.floor(has / each + 1e-6) if each else 0


def _gpu_share(places: Sequence[tuple[int, int]], slots: int) -> float:
    """CPUs a trial, so that no GPU is idle for lack of them; `places`: CPUs, slots of machines."""
    share = min(cpus / min(here, slots) for cpus, here in places)
    return share if share >= 1 else _countable(share)


def _cpu_share(cores: Sequence[int], slots: int) -> float:
    """The largest share that `slots` trials can have at once; whole where it is above one."""
    for share in range(max(cores, default=1), 0, -1):
        if sum(_fit(c, share) for c in cores) >= slots:
            return float(share)
    # An equal share, then less of it until machines of different sizes have room for all.
    part = _countable(sum(cores) / slots)
    while part > LEAST_CPUS and sum(_fit(c, part) for c in cores) < slots:
        part = _countable(part - 0.001)
    return part


def _countable(share: float) -> float:
    """Rounded down to what Ray can count."""
    return math.floor(share * 1000 + 1e-6) / 1000
