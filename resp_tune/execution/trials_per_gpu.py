"""How many trials a GPU trains side by side: measured, since a small network cannot fill one."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from threading import BrokenBarrierError

import torch

from resp_tune.config import TrialConfig
from resp_tune.features.batches import ClipIndex
from resp_tune.features.frames import Frames
from resp_tune.training.loop import SplitTensors, Training, TrainingData
from resp_tune.training.memory import keep_freed_memory, limit_gpu_memory, is_out_of_memory

COUNTS = (1, 2, 4, 8)
WORTH = 1.05  # more trials at once must bring this much more work, or a trial only takes longer
START_SECONDS = 300.0  # for torch, the device and the first epoch, of all processes at once


@dataclass(frozen=True)
class Workload:
    """What one trial computes: clips of each inner fold's sides, and the classes."""

    train: int
    validation: int
    classes: int
    folds: int = 1


@dataclass(frozen=True)
class PackingResult:
    """`trials` side by side ran `epochs_per_second` together."""

    trials: int
    epochs_per_second: float


def stand_in(config: TrialConfig, load: Workload) -> list[TrainingData]:
    """Folds of the given size over noise: an epoch costs the same, whatever is heard."""
    clips, rows = load.train + load.validation, config.clip_frames
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(clips * rows + 1, config.n_mels, generator=generator).mul_(10).sub_(50)
    count = torch.full((clips,), rows)
    first = count.cumsum(0) - count
    frames = Frames(values.half(), first, count, tuple(str(n) for n in range(clips)))
    labels = torch.arange(clips) % load.classes

    def side(chosen: slice) -> SplitTensors:
        return SplitTensors(ClipIndex(frames, first[chosen], count[chosen]), labels[chosen])

    names = tuple(str(n) for n in range(load.classes))
    train, validation = side(slice(load.train)), side(slice(load.train, None))
    return [TrainingData(train, validation, names)] * load.folds


def measure(
    config: TrialConfig, load: Workload, device: str, trials: int, *, epochs: int, threads: int
) -> PackingResult | None:
    """Train `trials` at once, a process each, all on `device`; None where memory does not suffice.

    The clock starts when every process has run an epoch, and stops with the last one's `epochs`.
    """
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    barrier = context.Barrier(trials)
    config = config.replace({"epochs": epochs + 1})
    with ProcessPoolExecutor(trials, context, _join, (barrier,)) as pool:
        work = (config, load, device, 1 / trials, epochs, threads)
        running = [pool.submit(_train, *work) for _ in range(trials)]
        try:
            times = [future.result() for future in running]
        except BrokenProcessPool:  # the system ended one: the host's memory does not suffice
            return None
    told = [t for t in times if t is not None]
    if len(told) < trials:
        return None
    seconds = max(end for _, end in told) - min(start for start, _ in told)
    return PackingResult(trials, trials * epochs / seconds)


def measure_all(
    config: TrialConfig,
    load: Workload,
    device: str,
    *,
    threads: Mapping[int, int],
    epochs: int,
) -> Iterator[PackingResult]:
    """So many trials at once as memory suffices for; `threads`: of each, by how many there are."""
    for trials, each in threads.items():
        found = measure(config, load, device, trials, epochs=epochs, threads=each)
        if found is None:
            return
        yield found


def choose(measured: Sequence[PackingResult]) -> int:
    """The fewest trials that no larger number outdoes by a factor `WORTH`; 1 of none."""
    best = max((p.epochs_per_second for p in measured), default=0.0)
    return next((p.trials for p in measured if p.epochs_per_second * WORTH >= best), 1)


_barrier: Barrier | None = None


def _join(barrier: Barrier) -> None:
    """In each process: where all of them meet before the clock starts."""
    global _barrier  # a barrier reaches a pool's process by inheritance alone
    _barrier = barrier


def _train(
    config: TrialConfig, load: Workload, device: str, share: float, epochs: int, threads: int
) -> tuple[float, float] | None:
    """Start and end of `epochs` epochs, seconds of the system's monotonic clock."""
    if _barrier is None:
        raise RuntimeError("runs in a process of `measure` only")
    keep_freed_memory()
    torch.set_num_threads(threads)
    try:
        limit_gpu_memory(device, share)
        training = Training(config, stand_in(config, load), device)
        training.run_epoch()
        _barrier.wait(START_SECONDS)
        start = time.monotonic()
        for _ in range(epochs):
            training.run_epoch()
        return start, time.monotonic()
    except Exception as error:
        _barrier.abort()  # the others need not wait
        if is_out_of_memory(error) or isinstance(error, BrokenBarrierError):
            return None
        raise
