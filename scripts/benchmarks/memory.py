"""Memory: what trials that run at once hold of the feature store, each counted by its share."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from benchmarks import ours
from benchmarks.rounds import Figures, Runner
from benchmarks.workplace import Findings, Workplace
from resp_tune.config import TrialConfig
from resp_tune.errors import RunError
from resp_tune.features.cache import open_cache
from resp_tune.training.datamodule import FoldTables

ROWS = ("memory_share",)
TRIALS = 4
ROWS_AT_ONCE = 10_000

_MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+ +(?P<path>/.*)")


def measure(place: Workplace) -> Findings:
    """PSS of the store's mappings: one trial, then four, all of which have trained an epoch."""
    config = ours.fast(place.config(epochs=1)).replace({"micro_batch": 16})
    # Resolved, as the kernel names it.
    store, _ = place.fill(place.folder.resolve() / "shared", config.front_end)
    args = (config, store, place.tables)
    with contextlib.ExitStack() as stack:
        trials: list[Runner] = []
        sums = []
        for wanted in (1, TRIALS):
            while len(trials) < wanted:
                trials.append(stack.enter_context(Runner(train_and_stay, *args)))
                trials[-1].next()
            sums.append(sum(store_pss(_smaps(trial.process.pid), store) for trial in trials))
    alone, together = sums
    if not alone:
        raise RunError("no mapping of the store was found in /proc/PID/smaps")
    return Findings(
        {"memory_share": together / alone},
        {
            "memory_share": f"PSS of the store's mappings from smaps: 1 trial {alone / 1024:.1f} "
            f"MB, {TRIALS} trials {together / 1024:.1f} MB in all"
        },
        {"store_pss_kb": {"1": alone, str(TRIALS): together}},
    )


def train_and_stay(config: TrialConfig, store: Path, tables: FoldTables) -> Iterator[Figures]:
    """Read every frame, train an epoch, then keep all that a trial keeps."""
    training = ours.start(config, store, tables, threads=1)
    values = open_cache(store).values
    for first in range(0, len(values), ROWS_AT_ONCE):
        values[first : first + ROWS_AT_ONCE].float().sum()  # each page is touched
    training.run_epoch()
    yield {}


def _smaps(pid: int | None) -> str:
    try:
        return Path(f"/proc/{pid}/smaps").read_text()
    except OSError as error:
        raise RunError(f"memory_share needs Linux's /proc/PID/smaps: {error}") from error


def store_pss(smaps: str, store: Path) -> int:
    """Proportional set size, kB, of all mappings of files in `store`."""
    total, inside = 0, False
    for line in smaps.splitlines():
        if line.startswith("Pss:"):
            total += int(line.split()[1]) if inside else 0
        elif re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            mapping = _MAPPING.fullmatch(line)
            inside = mapping is not None and Path(mapping["path"]).is_relative_to(store)
    return total
