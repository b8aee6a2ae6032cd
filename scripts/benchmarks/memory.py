"""Measure how much memory concurrent trials use for the features, from the kernel's shares."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from benchmarks.resp_tune_training import fast, start_training
from benchmarks.rounds import Figures, IteratorProcess
from benchmarks.workspace import Measurement, Workspace
from resp_tune.config import TrialConfig
from resp_tune.errors import RunError
from resp_tune.features.cache import open_cache
from resp_tune.training.datamodule import FoldTables

ROWS = ("memory_share",)
TRIALS = 4
ROWS_PER_READ = 10_000

_MAPPING = re.compile(r"[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+ +(?P<path>/.*)")


def measure(workspace: Workspace) -> Measurement:
    """Measure the PSS of the cache's mappings with one and with four trials, after an epoch."""
    config = fast(workspace.config(epochs=1)).replace({"micro_batch": 16})
    # smaps has resolved paths.
    store, _ = workspace.fill_cache(workspace.folder.resolve() / "shared", config.front_end)
    args = (config, store, workspace.tables)
    with contextlib.ExitStack() as stack:
        trials: list[IteratorProcess] = []
        sums = []
        for count in (1, TRIALS):
            while len(trials) < count:
                trials.append(stack.enter_context(IteratorProcess(train_and_keep_memory, *args)))
                trials[-1].next()
            sums.append(sum(mapped_pss(_smaps(trial.process.pid), store) for trial in trials))
    one, several = sums
    if not one:
        raise RunError("/proc/PID/smaps has no mapping of the feature cache")
    return Measurement(
        {"memory_share": several / one},
        {
            "memory_share": f"PSS of the cache's mappings from smaps: 1 trial {one / 1024:.1f} "
            f"MB, {TRIALS} trials {several / 1024:.1f} MB in total"
        },
        {"store_pss_kb": {"1": one, str(TRIALS): several}},
    )


def train_and_keep_memory(
    config: TrialConfig, store: Path, tables: FoldTables
) -> Iterator[Figures]:
    """Read every frame, train one epoch, then keep the memory of a trial until the process ends."""
    training = start_training(config, store, tables, threads=1)
    values = open_cache(store).values
    for first in range(0, len(values), ROWS_PER_READ):
        values[first : first + ROWS_PER_READ].float().sum()  # maps each page
    training.run_epoch()
    yield {}


def _smaps(pid: int | None) -> str:
    try:
        return Path(f"/proc/{pid}/smaps").read_text()
    except OSError as error:
        raise RunError(f"memory_share needs Linux's /proc/PID/smaps: {error}") from error


def mapped_pss(smaps: str, folder: Path) -> int:
    """Return the proportional set size, in kB, of all mappings of files in `folder`."""
    total, inside = 0, False
    for line in smaps.splitlines():
        if line.startswith("Pss:"):
            total += int(line.split()[1]) if inside else 0
        elif re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            mapping = _MAPPING.fullmatch(line)
            inside = mapping is not None and Path(mapping["path"]).is_relative_to(folder)
    return total
