"""The temporary folder of a benchmark run, its recordings and their split."""

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
from resp_tune.data.make_split import make_split
from resp_tune.data.split_spec import SplitSpec
from resp_tune.data.tasks import get_task, make_clips
from resp_tune.features.cache import FeatureCaches
from resp_tune.training.datamodule import DataModule, FoldTables

log = logging.getLogger("resp_tune")

TASK, PROTOCOL = "diagnosis", "recording"  # the notebook's 80/20 split by recording
CACHE_LIMIT_BYTES = 10**13  # nothing is evicted


@dataclass(frozen=True)
class Measurement:
    """Values by row, the method of each, and the raw figures for the JSON file."""

    values: dict[str, float]
    method: dict[str, str]
    details: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Workspace:
    """The temporary folder of one run; recordings are made when a row first needs them."""

    folder: Path
    sizes: Sizes

    @cached_property
    def machine(self) -> Machine:
        """The cores and the memory that the rows may use."""
        return this_machine()

    @cached_property
    def data(self) -> Path:
        """The folder of the recordings."""
        started = time.perf_counter()
        make_recordings(self.folder / "data", self.sizes.recordings)
        seconds = time.perf_counter() - started
        log.info(f"made {self.sizes.recordings} recordings in {seconds:.0f} s")
        return self.folder / "data"

    @cached_property
    def datamodule(self) -> DataModule:
        """The recordings with the split that every row uses."""
        dataset = load_dataset(self.data)
        clips = make_clips(get_task(TASK), dataset)
        split = make_split(dataset, clips, SplitSpec(PROTOCOL, split_seed=0, folds=1))
        return DataModule(dataset, clips, split)

    @property
    def tables(self) -> FoldTables:
        """The training and the validation split, over a cache of all recordings."""
        return self.datamodule.folds()[0]

    def items(self) -> tuple[Items, Items]:
        """Return the training and the validation split as the notebook's loop takes them."""
        stems = self.datamodule.search_stems
        paths = {r.stem: str(r.path) for r in self.datamodule.dataset.recordings}
        train, validation = (
            [(paths[stems[n]], int(label)) for n, label in zip(t.cache_index, t.label, strict=True)]
            for t in (self.tables.train, self.tables.validation)
        )
        return train, validation

    def config(self, epochs: int) -> TrialConfig:
        """Return the notebook's settings with `epochs` epochs."""
        return preset("notebook").replace({"epochs": epochs})

    def fill_cache(self, root: Path, front_end: FrontEnd) -> tuple[Path, float]:
        """Fill an empty cache at `root`; return its folder and the seconds, with hashing."""
        started = time.perf_counter()
        cpus = self.machine.cpus
        sources = self.datamodule.audio_sources(self.datamodule.search_stems, cpus)
        caches = FeatureCaches(root, tuple(sources), CACHE_LIMIT_BYTES)
        caches.fill([front_end], workers=cpus)
        return caches.folder(front_end), time.perf_counter() - started
