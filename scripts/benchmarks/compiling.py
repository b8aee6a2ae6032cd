"""Measure whether torch.compile pays: an epoch with and without it, and the time to compile."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.resp_tune_training import fast, train
from benchmarks.rounds import Figures, IteratorProcess, take_turns
from benchmarks.workspace import Workspace
from resp_tune.config import TrialConfig
from resp_tune.training.datamodule import FoldTables


def train_compiled(
    config: TrialConfig, store: Path, tables: FoldTables, threads: int, cache: Path
) -> Iterator[Figures]:
    """Yield row C's epochs with the network compiled and its kernels kept in `cache`."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
    return train(config, store, tables, threads, compile=True)


def measure(workspace: Workspace) -> str:
    """Return lines on what compiling costs and saves on row C, and when it pays."""
    rounds = workspace.sizes.rounds
    config = fast(workspace.config(epochs=rounds + 1))
    store, _ = workspace.fill_cache(workspace.folder / "store", config.front_end)
    args = (config, store, workspace.tables, workspace.machine.cpus)
    cache = workspace.folder / "inductor"
    with IteratorProcess(train_compiled, *args, cache) as process:
        first = process.next()["seconds"]
    with (
        IteratorProcess(train, *args) as plain,
        IteratorProcess(train_compiled, *args, cache) as compiled,
    ):
        first_cached = compiled.next()["seconds"]
        plain.next()
        figures = take_turns(
            {"plain": plain.next, "compiled": compiled.next}, rounds - 1, warm_up=0
        )
    epoch = {
        name: statistics.median(f["seconds"] for f in values) for name, values in figures.items()
    }
    return describe(epoch, first, first_cached)


def describe(epoch: Mapping[str, float], first: float, first_cached: float) -> str:
    """Return the figures as lines of text.

    `epoch`: seconds of an epoch, plain and compiled. `first`, `first_cached`: seconds of the first
    compiled epoch with an empty and with a filled kernel cache.
    """
    saved = epoch["plain"] - epoch["compiled"]
    lines = [
        f"an epoch: {epoch['plain']:.2f} s, compiled {epoch['compiled']:.2f} s",
        f"the first compiled epoch: {first:.1f} s, with a filled cache {first_cached:.1f} s",
    ]
    if saved <= 0:
        return "\n".join([*lines, "compiling never pays on this machine"])
    costs = [max(seconds - epoch["compiled"], 0.0) for seconds in (first, first_cached)]
    after = " and ".join(f"{cost / saved:.0f}" for cost in costs)
    return "\n".join([*lines, f"compiling pays after {after} epochs of one shape"])
