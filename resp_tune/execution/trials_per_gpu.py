"""Benchmark how many trials to run at once on a GPU, since a small network cannot fill one."""

from __future__ import annotations

import dataclasses
import logging
import math
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from threading import BrokenBarrierError

import torch

from resp_tune.cluster.connect import Cluster
from resp_tune.cluster.node_calls import call_on_nodes
from resp_tune.cluster.resources import (
    THIS_MACHINE,
    Machine,
    ResourceRequest,
    TrialResources,
    allocate,
    trial_capacity,
)
from resp_tune.config import TrialConfig
from resp_tune.errors import RunError
from resp_tune.features.batches import ClipIndex
from resp_tune.features.logmel import Frames
from resp_tune.features.pooled_clips import PooledClips
from resp_tune.training.fold_training import SplitTensors, TrainingData
from resp_tune.training.loop import Training
from resp_tune.training.memory import is_out_of_memory, keep_freed_memory, limit_gpu_memory

log = logging.getLogger(__name__)

COUNTS = (1, 2, 4, 8)
EPOCHS = 3  # of each trial that is measured
MIN_GAIN = 1.05  # more trials at once must bring this much more work, or each only takes longer
ENCODER_FEATURES = 4096  # that stand in for those of an encoder
START_SECONDS = 300.0  # for torch, the device and the first epoch, of all processes at once


@dataclass(frozen=True)
class Workload:
    """The size of a trial: clips of a fold's training and validation split, classes, folds."""

    train: int
    validation: int
    classes: int
    folds: int = 1


def benchmark_slots(
    request: ResourceRequest, pool: Machine | Cluster, config: TrialConfig, load: Workload
) -> TrialResources:
    """Return the resources of each trial with the number of trials per GPU that pays off best.

    On a cluster one node of each GPU type is measured, all at the same time, and the smallest
    number holds for all nodes. Raises `RunError` when a measurement fails.
    """
    machines = pool.machines if isinstance(pool, Cluster) else (pool,)
    where = str(pool) if isinstance(pool, Cluster) else THIS_MACHINE
    one = allocate(machines, request, where)
    used = [m for m in machines if m.gpus and trial_capacity(one, [m])]
    gpus = request.gpus or sum(m.gpus for m in used)
    cpus_per_gpu = min(m.cpus / min(m.gpus, gpus) for m in used)
    most = math.floor(cpus_per_gpu / (request.cpus_per_trial or 1.0))
    if request.concurrency is not None:
        most = min(most, math.ceil(request.concurrency / gpus))
    options = {
        count: allocate(machines, dataclasses.replace(request, trials_per_gpu=count), where)
        for count in COUNTS
        if count <= max(1, most)
    }
    threads = {count: slots.threads for count, slots in options.items()}
    if isinstance(pool, Cluster):
        nodes = {n.gpu_type: n.id for n in reversed(pool.nodes) if n.machine in used}
        by_id = dict.fromkeys(nodes.values(), (config, load, "cuda", threads))
        by_node = call_on_nodes(measure_all, by_id, cpus=one.cpus, gpus=1)
        results = {gpu_type: by_node[node_id] for gpu_type, node_id in nodes.items()}
    else:
        try:
            results = {"": measure_all(config, load, "cuda", threads)}
        except Exception as error:  # a bug of the config or the GPU driver, as on a node
            results = {"": error}
    for gpu_type, measured in sorted(results.items()):
        on = gpu_type and f" on {gpu_type}"
        if isinstance(measured, Exception):
            cause = " ".join(f"{type(measured).__name__}: {measured}".split())[:400]
            raise RunError(
                f"trials per GPU could not be measured{on}, so no trial was started: {cause}"
            ) from measured
        rates = ", ".join(f"{trials}: {rate:.2f}" for trials, rate in measured.items())
        log.info(
            f"trials per GPU: {choose(measured)}{on} (epochs a second of so many at once: "
            f"{rates or 'none fitted'})"
        )
    return options[min(choose(measured) for measured in results.values())]


def stand_in(config: TrialConfig, load: Workload) -> list[TrainingData]:
    """Return folds of the given size, of noise: an epoch costs the same on any sound."""
    clips, generator = load.train + load.validation, torch.Generator().manual_seed(0)
    labels = torch.arange(clips) % load.classes
    make = _noise_features if config.has_encoder else _noise_frames
    parts = make(config, clips, generator, (slice(load.train), slice(load.train, None)))
    train, validation = (SplitTensors(clips, labels[chosen]) for clips, chosen in parts)
    names = tuple(str(n) for n in range(load.classes))
    return [TrainingData(train, validation, names)] * load.folds


Parts = list[tuple[ClipIndex | PooledClips, slice]]


def _noise_features(
    config: TrialConfig, clips: int, generator: torch.Generator, splits: Sequence[slice]
) -> Parts:
    values = torch.randn(clips, ENCODER_FEATURES, generator=generator)
    return [(PooledClips(values[chosen], f"noise {chosen}"), chosen) for chosen in splits]


def _noise_frames(
    config: TrialConfig, clips: int, generator: torch.Generator, splits: Sequence[slice]
) -> Parts:
    rows = config.clip_frames
    values = torch.randn(clips * rows + 1, config.n_mels, generator=generator).mul_(10).sub_(50)
    count = torch.full((clips,), rows)
    first = count.cumsum(0) - count
    frames = Frames(values.half(), first, count)
    return [(ClipIndex(frames, first[chosen], count[chosen]), chosen) for chosen in splits]


def measure(
    config: TrialConfig, load: Workload, device: str, trials: int, *, epochs: int, threads: int
) -> float | None:
    """Return the epochs a second of `trials` at once on `device`, each in a process of its own.

    The clock starts when every process has run an epoch, and stops with the last one's `epochs`.
    Returns None when memory does not suffice.
    """
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    barrier = context.Barrier(trials)
    config = config.replace({"epochs": epochs + 1})
    with ProcessPoolExecutor(trials, context, _join, (barrier,)) as pool:
        arguments = (config, load, device, 1 / trials, epochs, threads)
        running = [pool.submit(_train, *arguments) for _ in range(trials)]
        try:
            times = [future.result() for future in running]
        except BrokenProcessPool:  # the system ended one: the host's memory does not suffice
            return None
    complete = [t for t in times if t is not None]
    if len(complete) < trials:
        return None
    seconds = max(end for _, end in complete) - min(start for start, _ in complete)
    return trials * epochs / seconds


def measure_all(
    config: TrialConfig,
    load: Workload,
    device: str,
    threads: Mapping[int, int],
    epochs: int = EPOCHS,
) -> dict[int, float]:
    """Return the epochs a second by the number of trials at once, until memory runs out.

    `threads[n]`: threads of each trial when `n` trials run at once.
    """
    rates = {}
    for trials, each in threads.items():
        rate = measure(config, load, device, trials, epochs=epochs, threads=each)
        if rate is None:
            break
        rates[trials] = rate
    return rates


def choose(rates: Mapping[int, float]) -> int:
    """Return the fewest trials that no other number beats by a factor of `MIN_GAIN`, at least 1."""
    best = max(rates.values(), default=0.0)
    return next((trials for trials, rate in rates.items() if rate * MIN_GAIN >= best), 1)


_barrier: Barrier | None = None


def _join(barrier: Barrier) -> None:
    """Keep the barrier at which all processes meet before the clock starts."""
    global _barrier  # a barrier reaches a pool's process by inheritance alone
    _barrier = barrier


def _train(
    config: TrialConfig, load: Workload, device: str, share: float, epochs: int, threads: int
) -> tuple[float, float] | None:
    """Return the start and end of `epochs` epochs, in seconds of the monotonic clock."""
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
