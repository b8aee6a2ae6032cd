"""Rows B and C: resp_tune's training. Row D: the same network on batches already in memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.in_memory import InMemoryTraining
from resp_tune.config import TrialConfig
from resp_tune.features.cache import open_cache
from resp_tune.training.compute_device import detect_compute_device, resolve_precision
from resp_tune.training.datamodule import FoldTables
from resp_tune.training.loop import Training
from resp_tune.training.memory import keep_freed_memory

MATRIX_SIZE = 2048  # rows and columns of the matrices whose product measures the peak


def fast(config: TrialConfig) -> TrialConfig:
    """Return `config` with the precision that resp_tune chooses on this machine's CPU."""
    return resolve_precision(config.replace({"precision": "auto"}), detect_compute_device("cpu"))


def start_training(config: TrialConfig, store: Path, tables: FoldTables, threads: int) -> Training:
    """Start a training as a trial's worker does."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    frames = open_cache(store)
    return Training(config, [tables.tensors(frames, config.front_end)])


def train(
    config: TrialConfig, store: Path, tables: FoldTables, threads: int, *, compile: bool = False
) -> Iterator[dict[str, float]]:
    """Yield the seconds of each epoch, with validation; `compile` compiles the network."""
    training = start_training(config, store, tables, threads)
    if compile:
        training.folds[0].network.compile()
    while True:
        started = time.perf_counter()
        training.run_epoch()
        yield {"seconds": time.perf_counter() - started}


def train_in_memory(
    config: TrialConfig, store: Path, tables: FoldTables, threads: int
) -> Iterator[dict[str, float]]:
    """Yield the seconds of each epoch on batches made in advance, its FLOP and the CPU's peak.

    `flops`: floating-point operations of an epoch, counted on the running network. `peak_float32`
    and, if the network runs in bfloat16, `peak_bfloat16`: FLOP/s of a large matrix product, right
    after the epoch.
    """
    training = InMemoryTraining(start_training(config, store, tables, threads))
    with FlopCounterMode(display=False) as counter:
        training.epoch()
    while True:
        started = time.perf_counter()
        training.epoch()
        seconds = time.perf_counter() - started
        peaks = {"peak_float32": peak(torch.float32)}
        if config.precision == "bfloat16":
            peaks["peak_bfloat16"] = peak(torch.bfloat16)
        yield {"seconds": seconds, "flops": float(counter.get_total_flops()), **peaks}


def peak(dtype: torch.dtype, size: int = MATRIX_SIZE, repeats: int = 5) -> float:
    """Return the best FLOP/s of `repeats` products of two square matrices."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    best = 0.0
    for _ in range(repeats):
        started = time.perf_counter()
        torch.mm(a, b)
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


def profile(config: TrialConfig, store: Path, tables: FoldTables, threads: int) -> str:
    """Return a table of the operations that take most of an epoch's time, with validation."""
    training = start_training(config, store, tables, threads)
    training.run_epoch()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        training.run_epoch()
    return str(profiler.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))
