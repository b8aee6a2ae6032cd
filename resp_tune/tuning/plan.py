"""How many trials run at once, and what each is given."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import psutil

from resp_tune.errors import UserError

LEAST_CPUS = 0.01
TRIAL_MEMORY = 1.5e9  # bytes: torch, Ray's worker and a batch of the notebook's size


@dataclass(frozen=True)
class Machine:
    """What trials may use here."""

    cpus: int
    gpus: int
    memory: int  # bytes free


@dataclass(frozen=True)
class Slots:
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
    machine: Machine,
    *,
    gpus: int | None,
    trials_per_gpu: int,
    concurrency: int | None,
    cpus_per_trial: float | None,
    logical_gpus: bool,
) -> Slots:
    """Divide the machine among trials; `UserError` when it has not what was asked for.

    `gpus` None means all there are. With `logical_gpus` GPUs are counted but not needed.
    """
    if gpus is None:
        gpus = machine.gpus
    elif gpus > machine.gpus and not logical_gpus:
        raise UserError(
            f"--gpus {gpus}: this machine has {machine.gpus or 'no'} GPU"
            f"{'s' * (machine.gpus > 1)} that torch can use; give --gpus {machine.gpus}"
            f"{' for the CPU' if not machine.gpus else ''}, or set RESP_TUNE_LOGICAL_GPUS=1 to "
            "rehearse"
        )
    if gpus:
        most = gpus * trials_per_gpu
    elif cpus_per_trial is not None:
        most = math.floor(machine.cpus / cpus_per_trial)
    else:
        # One thread a trial: two trials side by side finish sooner than one with two threads.
        most = min(machine.cpus, max(1, int(machine.memory / TRIAL_MEMORY)))
    slots = concurrency if concurrency is not None and not gpus else min(concurrency or most, most)
    if cpus_per_trial is None:
        cpus_per_trial = _share(machine.cpus, max(slots, 1), whole=not gpus)
    if cpus_per_trial * max(slots, 1) > machine.cpus + 1e-6 or slots < 1:
        raise UserError(
            f"{max(slots, 1)} trials at once with {cpus_per_trial:g} CPUs each need more than the "
            f"{machine.cpus} CPUs of this machine: lower --concurrency or --cpus-per-trial"
        )
    if cpus_per_trial < LEAST_CPUS:
        raise UserError(f"--cpus-per-trial {cpus_per_trial:g} is below {LEAST_CPUS:g}")
    gpu_share = 1 / trials_per_gpu if gpus else 0.0
    return Slots(slots, cpus_per_trial, gpu_share, max(1, int(cpus_per_trial)))


def _share(cpus: int, slots: int, *, whole: bool) -> float:
    """An equal share, whole where it is above one; rounded down to what Ray can count."""
    share = cpus / slots
    if share >= 1:
        return float(int(share)) if whole else share
    return math.floor(share * 1000) / 1000
