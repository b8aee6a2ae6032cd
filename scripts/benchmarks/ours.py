"""Rows B and C: resp_tune's own training. Row D: the same network on tensors already in memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from resp_tune.config import TrialConfig
from resp_tune.features.augment import draw_augmented
from resp_tune.features.batches import make_batch
from resp_tune.features.store import open_store
from resp_tune.learning.memory import keep_freed_memory
from resp_tune.learning.precision import settle_precision
from resp_tune.learning.problem import FoldTables
from resp_tune.learning.training import EVALUATION_BATCH, Training, autocast, batch_bounds

MATRIX = 2048  # rows and columns of the product that shows the cores' peak

Batches = list[tuple[torch.Tensor, torch.Tensor]]


def fast(config: TrialConfig) -> TrialConfig:
    """`config` with what resp_tune chooses by itself for speed on this machine's CPU."""
    return settle_precision(config.replace({"precision": "auto"}), "cpu")


def start(config: TrialConfig, store: Path, tables: FoldTables, threads: int) -> Training:
    """A training as a trial's worker starts it."""
    keep_freed_memory()
    torch.set_num_threads(threads)
    frames = open_store(store)
    return Training(config, [tables.tensors(frames, config.front_end)])


def train(
    config: TrialConfig, store: Path, tables: FoldTables, threads: int
) -> Iterator[dict[str, float]]:
    """Seconds of each epoch, validation included."""
    training = start(config, store, tables, threads)
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
    train_side, validation_side = _in_memory(training, config)
    with FlopCounterMode(display=False) as counter:
        _epoch(training, config, train_side, validation_side)
    while True:
        started = time.perf_counter()
        _epoch(training, config, train_side, validation_side)
        seconds = time.perf_counter() - started
        peaks = {"peak_float32": peak(torch.float32)}
        if config.precision == "bfloat16":
            peaks["peak_bfloat16"] = peak(torch.bfloat16)
        yield {"seconds": seconds, "flops": float(counter.get_total_flops()), **peaks}


def _in_memory(training: Training, config: TrialConfig) -> tuple[list[Batches], Batches]:
    """An epoch's optimiser steps, each a list of micro-batches, and the validation batches."""
    run = training.runs[0]
    sides = []
    for clips, labels in zip(run.clips, run.labels, strict=True):
        every = torch.arange(len(labels))
        draws = draw_augmented(every, clips.count, config, torch.Generator().manual_seed(0))
        sides.append((clips, labels, draws))

    def batches(side: int, first: int, last: int, size: int) -> Batches:
        clips, labels, draws = sides[side]
        bounds = [(first + a, first + b) for a, b in batch_bounds(last - first, size)]
        return [(make_batch(clips, draws[a:b], config), labels[a:b]) for a, b in bounds]

    steps = [batches(0, a, b, config.micro_batch or b - a) for a, b in run.batches]
    held_out = len(sides[1][1])
    starts = range(0, held_out, EVALUATION_BATCH)
    return steps, [
        pair
        for a in starts
        for pair in batches(1, a, min(a + EVALUATION_BATCH, held_out), EVALUATION_BATCH)
    ]


def _epoch(
    training: Training, config: TrialConfig, steps: list[Batches], held_out: Batches
) -> None:
    run = training.runs[0]
    run.network.train()
    for step in steps:
        run.optimizer.zero_grad(set_to_none=True)
        items = sum(len(labels) for _, labels in step)
        for x, labels in step:
            with autocast(config, run.device):
                logits = run.network(x)
            loss = nn.functional.cross_entropy(logits.float(), labels, reduction="sum") / items
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own
        run.optimizer.step()
    run.network.eval()
    with torch.inference_mode(), autocast(config, run.device):
        for x, _ in held_out:
            run.network(x).float().softmax(1)


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
