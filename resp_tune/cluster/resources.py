"""How many trials run at once, and the CPUs and GPUs that each of them gets."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from resp_tune.errors import UserError

THIS_MACHINE = "this machine"
LOGICAL_GPUS = "RESP_TUNE_LOGICAL_GPUS"  # "1": GPUs are counted, and trials run on the CPU
MIN_CPUS = 0.01
TRIAL_MEMORY = 1.5e9  # bytes: torch, Ray's worker and a batch of the notebook's size


@dataclass(frozen=True)
class Machine:
    """Cores, GPUs and free memory that trials may use on one machine."""

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


@dataclass(frozen=True)
class ResourceRequest:
    """What the flags of the same names ask for; None leaves the choice to `allocate`.

    With `logical_gpus`, GPUs are counted but need not exist.
    """

    gpus: int | None = None
    trials_per_gpu: int = 1
    concurrency: int | None = None
    cpus_per_trial: float | None = None
    logical_gpus: bool = False


def this_machine() -> Machine:
    """Return the cores this process may run on, the GPUs that torch sees, and the free memory."""
    import torch

    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(cpus, torch.cuda.device_count(), psutil.virtual_memory().available)


def allocate(
    machines: Sequence[Machine], request: ResourceRequest, where: str = THIS_MACHINE
) -> TrialResources:
    """Divide `machines` among trials, each of which runs on one of them.

    `where` is how error messages call the machines together. Raises `UserError` when the machines
    have less than `request` asks for.
    """
    available = sum(m.gpus for m in machines)
    gpus = available if request.gpus is None else request.gpus
    if gpus > available and not request.logical_gpus:
        raise UserError(
            f"--gpus {gpus}: {where} has {available or 'no'} GPU{'s' * (available > 1)} that torch "
            f"can use; give --gpus {available}{' for the CPU' if not available else ''}, or set "
            "RESP_TUNE_LOGICAL_GPUS=1 to rehearse"
        )
    if request.cpus_per_trial is not None and request.cpus_per_trial < MIN_CPUS:
        raise UserError(f"--cpus-per-trial {request.cpus_per_trial:g} is below {MIN_CPUS:g}")
    divide = _gpu_slots if gpus else _cpu_slots
    slots, cpus, capacity = divide(machines, gpus, request)
    if capacity < max(slots, 1) or cpus < MIN_CPUS:
        raise UserError(
            f"{max(slots, 1)} trials at once with {cpus:g} CPUs each need more than the "
            f"{sum(m.cpus for m in machines)} CPUs of {where}: lower --concurrency or "
            "--cpus-per-trial"
        )
    gpu_share = 1 / request.trials_per_gpu if gpus else 0.0
    return TrialResources(slots, cpus, gpu_share, max(1, int(cpus)))


def _gpu_slots(
    machines: Sequence[Machine], gpus: int, request: ResourceRequest
) -> tuple[int, float, int]:
    """Return the trials at once, the CPUs of each, and how many of them the machines can hold."""
    per_gpu = request.trials_per_gpu
    # Cores and trial slots of each machine with GPUs; logical GPUs are all on the first machine.
    hosts = [(m.cpus, m.gpus * per_gpu) for m in machines if m.gpus]
    if gpus > sum(m.gpus for m in machines):
        hosts = [(machines[0].cpus, gpus * per_gpu)]
    slots = min(request.concurrency or gpus * per_gpu, gpus * per_gpu)
    share = request.cpus_per_trial
    if share is None:
        # The smallest share of any machine, so that no GPU is idle for lack of cores.
        share = min(cpus / min(here, slots) for cpus, here in hosts)
        share = share if share >= 1 else _round_down(share)
    return slots, share, sum(min(_fit(cpus, share), here) for cpus, here in hosts)


def _cpu_slots(
    machines: Sequence[Machine], _gpus: int, request: ResourceRequest
) -> tuple[int, float, int]:
    """Return the trials at once, the CPUs of each, and how many of them the machines can hold."""
    cores, share = [m.cpus for m in machines], request.cpus_per_trial
    if request.concurrency is not None:
        slots = request.concurrency
    elif share is not None:
        slots = sum(_fit(c, share) for c in cores)
    else:
        # One thread a trial: two side by side finish sooner than one with two threads.
        slots = sum(min(m.cpus, max(1, int(m.memory / TRIAL_MEMORY))) for m in machines)
    if share is None:
        share = _largest_share(cores, max(slots, 1))
    return slots, share, sum(_fit(c, share) for c in cores)


def _largest_share(cores: Sequence[int], slots: int) -> float:
    """Return the most CPUs that `slots` trials can have at once, whole where above one."""
    for share in range(max(cores, default=1), 0, -1):
        if sum(_fit(c, share) for c in cores) >= slots:
            return float(share)
    # An equal share, then less of it until machines of different sizes can hold all trials.
    part = _round_down(sum(cores) / slots)
    while part > MIN_CPUS and sum(_fit(c, part) for c in cores) < slots:
        part = _round_down(part - 0.001)
    return part


def trial_capacity(slots: TrialResources, machines: Sequence[Machine]) -> int:
    """Return how many trials with the CPUs and GPUs of `slots` fit on `machines` at once."""
    by_cpus = [_fit(m.cpus, slots.cpus) for m in machines]
    if not slots.gpus:
        return sum(by_cpus)
    return sum(min(fit, _fit(m.gpus, slots.gpus)) for fit, m in zip(by_cpus, machines, strict=True))


def _fit(available: float, each: float) -> int:
    """Return how often `each` fits into `available`; 1e-6 absorbs rounding, as of 3 × 1/3."""
    return math.floor(available / each + 1e-6) if each else 0


def _round_down(share: float) -> float:
    """Round down to the thousandths that Ray can count."""
    return math.floor(share * 1000 + 1e-6) / 1000
