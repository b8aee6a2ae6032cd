"""Where a benchmark run works: a temporary folder, its recordings, what is known about them."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.notebook import Items
from benchmarks.recordings import make_recordings
from benchmarks.sizes import Sizes
from resp_tune.cluster.resources import Machine, this_machine
from resp_tune.config import FrontEnd, TrialConfig, preset
from resp_tune.data.dataset import load_dataset
from resp_tune.data.protocols import make_split
from resp_tune.data.split_spec import SplitSpec
from resp_tune.data.tasks import get_task, make_clips
from resp_tune.features.cache import fill
from resp_tune.training.datamodule import DataModule, FoldTables

log = logging.getLogger("resp_tune")

TASK, PROTOCOL = "diagnosis", "recording"  # the notebook's 80/20 by recording
PLENTY = 10**13  # bytes; nothing is evicted


@dataclass(frozen=True)
class Findings:
    """Values by row, how each was measured, and the raw figures behind them."""

    values: dict[str, float]
    how: dict[str, str]
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Workplace:
    """The folder of one run. Recordings are made when a row first needs them."""

    folder: Path
    sizes: Sizes

    @cached_property
    def machine(self) -> Machine:
        """Cores and memory that the rows may use."""
        return this_machine()

    @cached_property
    def data(self) -> Path:
        """The folder of the recordings."""
        started = time.perf_counter()
        make_recordings(self.folder / "data", self.sizes.recordings)
        log.info(
            f"made {self.sizes.recordings} recordings in {time.perf_counter() - started:.0f} s"
        )
        return self.folder / "data"

    @cached_property
    def datamodule(self) -> DataModule:
        """The recordings with the sides that every row uses."""
        dataset = load_dataset(self.data)
        clips = make_clips(get_task(TASK), dataset)
        return DataModule(
            dataset, clips, make_split(dataset, clips, SplitSpec(PROTOCOL, split_seed=0, folds=1))
        )

    @property
    def tables(self) -> FoldTables:
        """The two sides, over a store of all recordings."""
        return self.datamodule.folds()[0]

    def items(self) -> tuple[Items, Items]:
        """Training and validation as the notebook's loop takes them."""
        stems = self.datamodule.search_stems
        paths = {r.stem: str(r.path) for r in self.datamodule.dataset.recordings}
        train, validation = (
            [(paths[stems[n]], int(label)) for n, label in zip(t.cache_index, t.label, strict=True)]
            for t in (self.tables.train, self.tables.validation)
        )
        return train, validation

    def config(self, epochs: int) -> TrialConfig:
        """The notebook's settings."""
        return preset("notebook").replace({"epochs": epochs})

    def fill(self, root: Path, front_end: FrontEnd) -> tuple[Path, float]:
        """A fresh store below `root` and the seconds it took, hashing the recordings included."""
        started = time.perf_counter()
        cpus = self.machine.cpus
        sources = self.datamodule.audio_sources(self.datamodule.search_stems, cpus)
        filled = fill(root, sources, [front_end], limit_bytes=PLENTY, workers=cpus)
        return filled.folders[front_end], time.perf_counter() - started
