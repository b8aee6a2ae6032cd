"""Rows B and C: resp_tune's own training. Row D: the same network on tensors already in memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.limit import Limit
from resp_tune.config import TrialConfig
from resp_tune.features.cache import open_cache
from resp_tune.training.compute_device import detect_compute_device, resolve_precision
from resp_tune.training.datamodule import FoldTables
from resp_tune.training.loop import Training
from resp_tune.training.memory import keep_freed_memory

MATRIX = 2048  # rows and columns of the product that shows the cores' peak


def fast(config: TrialConfig) -> TrialConfig:
    """`config` with what resp_tune chooses by itself for speed on this machine's CPU."""
    return resolve_precision(config.replace({"precision": "auto"}), detect_compute_device("cpu"))


def start(config: TrialConfig, store: Path, tables: FoldTables, threads: int) -> Training:
    """A training as a trial's worker starts it."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    frames = open_cache(store)
    return Training(config, [tables.tensors(frames, config.front_end)])


def train(
    config: TrialConfig, store: Path, tables: FoldTables, threads: int, *, compile: bool = False
) -> Iterator[dict[str, float]]:
    """Seconds of each epoch, validation included; with `compile` its network is compiled."""
    training = start(config, store, tables, threads)
    if compile:
        training.folds[0].network.compile()
    while True:
        started = time.perf_counter()
        training.run_epoch()
        yield {"seconds": time.perf_counter() - started}


def train_in_memory(
    config: TrialConfig, store: Path, tables: FoldTables, threads: int
) -> Iterator[dict[str, float]]:
    """The limit: seconds of each epoch on batches that were made before, and its arithmetic.

    `flops` of such an epoch, counted on the network as it runs; `peak_float32` and, where the
    network runs in it, `peak_bfloat16`: FLOP/s of a large matrix product, right after the epoch.
    """
    training = start(config, store, tables, threads)
    limit = Limit(training)
    with FlopCounterMode(display=False) as counter:
        limit.epoch()
    while True:
        started = time.perf_counter()
        limit.epoch()
        seconds = time.perf_counter() - started
        peaks = {"peak_float32": peak(torch.float32)}
        if config.precision == "bfloat16":
            peaks["peak_bfloat16"] = peak(torch.bfloat16)
        yield {"seconds": seconds, "flops": float(counter.get_total_flops()), **peaks}


def peak(dtype: torch.dtype, size: int = MATRIX, repeats: int = 5) -> float:
    """FLOP/s of a product of two square matrices, the best of `repeats`."""
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    best = 0.0
    for _ in range(repeats):
        started = time.perf_counter()
        torch.mm(a, b)
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


def profile(config: TrialConfig, store: Path, tables: FoldTables, threads: int) -> str:
    """The operations that an epoch of training and validation spends most time in, as a table."""
    training = start(config, store, tables, threads)
    training.run_epoch()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
        training.run_epoch()
    return str(seen.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))
