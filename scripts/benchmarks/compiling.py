"""Whether torch.compile repays its time: an epoch with and without it, and what it takes before."""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks import ours
from benchmarks.rounds import Figures, Runner, take_turns
from benchmarks.workplace import Workplace
from resp_tune.config import TrialConfig
from resp_tune.training.datamodule import FoldTables


def compiled(
    config: TrialConfig, store: Path, tables: FoldTables, threads: int, cache: Path
) -> Iterator[Figures]:
    """Row C's epochs with the network compiled, its kernels kept in `cache`."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(cache)
    return ours.train(config, store, tables, threads, compile=True)


def measure(place: Workplace) -> str:
    """Lines that say what compiling costs and saves on row C, and when it is repaid."""
    rounds = place.sizes.rounds
    config = ours.fast(place.config(epochs=rounds + 1))
    store, _ = place.fill(place.folder / "store", config.front_end)
    work = (config, store, place.tables, place.machine.cpus)
    cache = place.folder / "inductor"
    with Runner(compiled, *work, cache) as fresh:
        first = fresh.next()["seconds"]
    with Runner(ours.train, *work) as plain, Runner(compiled, *work, cache) as again:
        again_first = again.next()["seconds"]
        plain.next()
        taken = take_turns({"plain": plain.next, "compiled": again.next}, rounds - 1, warm_up=0)
    epoch = {name: statistics.median(f["seconds"] for f in found) for name, found in taken.items()}
    return say(epoch, first, again_first)


def say(epoch: Mapping[str, float], first: float, again: float) -> str:
    """`epoch`: seconds plain and compiled; `first`, `again`: the first epoch, compiling, with
    nothing in the cache and with all of it there.
    """
    saved = epoch["plain"] - epoch["compiled"]
    lines = [
        f"an epoch: {epoch['plain']:.2f} s, compiled {epoch['compiled']:.2f} s",
        f"the first compiled epoch: {first:.1f} s, with a filled cache {again:.1f} s",
    ]
    if saved <= 0:
        return "\n".join([*lines, "compiling is never repaid here"])
    costs = (max(first - epoch["compiled"], 0.0), max(again - epoch["compiled"], 0.0))
    after = " and ".join(f"{cost / saved:.0f}" for cost in costs)
    return "\n".join([*lines, f"compiling is repaid after {after} epochs of one shape"])
