"""A validated search: its options, location, data, search space and compute."""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from resp_tune.cluster.connect import Cluster
from resp_tune.cluster.resources import LOGICAL_GPUS, Machine, ResourceRequest, TrialResources
from resp_tune.common.paths import cache_folder, cache_limit_bytes
from resp_tune.common.text import one_line
from resp_tune.config import AnyFrontEnd, EncoderFrontEnd, FrontEnd, TrialConfig
from resp_tune.data.tasks import TASKS, Task
from resp_tune.encoders.encoder_file import Encoder
from resp_tune.execution.trial_context import TrialArtifacts
from resp_tune.features.cache import AudioSource, FeatureCaches
from resp_tune.harness.options import SearchOptions
from resp_tune.space.search_space import SearchSpace
from resp_tune.storage.object_store import ObjectPath
from resp_tune.study.study import FOLD_ORDER, LEVEL, OUTER_FOLDS, RECORDINGS, RESHUFFLE
from resp_tune.tracking.load_trial import DEVICE, THREADS
from resp_tune.training.compute_device import ComputeDevice, detect_compute_device
from resp_tune.training.datamodule import DataModule, data_digest
from resp_tune.training.networks.network_registry import BUILT_IN, network_origin

OUTER = "outer"  # the folder of the searches of outer folds, in that of the nested search
MAX_PREFILLED = 12  # log-mel front ends; of more, each cache is filled by its first trial


@dataclass(frozen=True)
class SearchLocation:
    """Where a search keeps its files and its MLflow runs.

    `remote` is the object store that `folder` is this machine's copy of, if there is one. The
    search of an outer fold has the `name` of the nested search that it belongs to, whose MLflow run
    is `parent_run`.
    """

    name: str
    folder: Path
    remote: ObjectPath | None
    tracking_uri: str
    outer_fold: int | None = None
    parent_run: str | None = None

    @property
    def storage(self) -> Path:
        """Return the folder of all searches."""
        return self.folder.parent if self.outer_fold is None else self.folder.parents[2]

    def of_outer_fold(self, number: int) -> SearchLocation:
        """Return where the search of an outer fold is kept: in `outer/NUMBER` of this one."""
        folder = self.folder / OUTER / str(number)
        return dataclasses.replace(self, folder=folder, outer_fold=number)

    @property
    def study_file(self) -> Path:
        """Return the path of the Optuna study."""
        return self.folder / "study.db"

    @property
    def trials(self) -> TrialArtifacts:
        """Return where the trials keep their files."""
        return TrialArtifacts(self.folder / "trials", self.remote and self.remote / "trials")


@dataclass(frozen=True)
class SearchData:
    """The recordings of the training and validation splits, and the front ends of the space.

    `sources` holds a content hash of each recording that trials read. `encoders` are those of the
    front ends.
    """

    datamodule: DataModule
    sources: tuple[AudioSource, ...]
    front_ends: tuple[AnyFrontEnd, ...]
    encoders: tuple[Encoder, ...] = ()

    @property
    def caches(self) -> FeatureCaches:
        """Return the feature caches of the recordings, none of which is known to be filled."""
        return FeatureCaches(None, self.sources, cache_limit_bytes(), encoders=self.encoders)

    def encoder(self, config: TrialConfig) -> Encoder | None:
        """Return the encoder of a trial, None if it has none."""
        for front_end in config.front_ends:
            if isinstance(front_end, EncoderFrontEnd):
                return self.caches.encoder(front_end)
        return None

    @property
    def prefilled(self) -> tuple[AnyFrontEnd, ...]:
        """Return the front ends whose feature caches are filled before the first trial.

        Those of encoders always are: one pass over the recordings fills all of them.
        """
        mels = [f for f in self.front_ends if isinstance(f, FrontEnd)]
        few = len(mels) <= MAX_PREFILLED
        return tuple(f for f in self.front_ends if few or isinstance(f, EncoderFrontEnd))

    @cached_property
    def seconds(self) -> tuple[float, ...]:
        """Return how long each recording of `sources` lasts, in s."""
        recordings = self.datamodule.dataset.recordings
        lasts = {r.stem: r.samples / r.sample_rate for r in recordings}
        return tuple(lasts[source.stem] for source in self.sources)

    @property
    def is_resampled(self) -> bool:
        """Return whether a trial may resample a recording."""
        rates = {f.sample_rate for f in self.front_ends if isinstance(f, FrontEnd)}
        rates |= {encoder.settings.rate for encoder in self.encoders}
        return any(rates != {r.sample_rate} for r in self.datamodule.dataset.recordings)

    @cached_property
    def paths(self) -> dict[str, Path]:
        """Return the absolute path of each recording that trials read, by stem."""
        paths = {r.stem: r.path.absolute() for r in self.datamodule.dataset.recordings}
        return {source.stem: paths[source.stem] for source in self.sources}

    @property
    def name(self) -> str:
        """Return the name of the data set in result files, without this machine's path."""
        root = self.datamodule.dataset.root.absolute()
        built_in = root.is_relative_to(cache_folder() / "synthetic")
        return "built-in synthetic set" if built_in else one_line(root.name)


@dataclass(frozen=True)
class Compute:
    """What trials run on: the driver's `machine`, or a Ray `cluster`.

    `slots` is what one trial gets of what `request` asks for. `node_device` is the compute device
    of the cluster's nodes, once they have been checked.
    """

    machine: Machine
    request: ResourceRequest
    slots: TrialResources
    cluster: Cluster | None = None
    node_device: ComputeDevice | None = None

    @property
    def max_concurrent(self) -> int | None:
        """Return the largest number of concurrent trials, however large a cluster grows."""
        limits = [] if self.request.concurrency is None else [self.request.concurrency]
        if self.request.gpus:
            limits.append(round(self.request.gpus / self.slots.gpus))
        return min(limits, default=None)

    @property
    def device_type(self) -> str:
        """Return `cuda`, or `cpu`, which is also the type of logical GPUs."""
        physical = self.slots.gpus > 0 and os.environ.get(LOGICAL_GPUS) != "1"
        return "cuda" if physical else "cpu"

    @cached_property
    def device(self) -> ComputeDevice:
        """Return the compute device of the trials."""
        return self.node_device or detect_compute_device(self.device_type)

    @property
    def driver_device_type(self) -> str:
        """Return the device type of this process: the driver of a cluster may have no GPU."""
        import torch

        return self.device_type if torch.cuda.is_available() else "cpu"

    @property
    def trial_tags(self) -> dict[str, str]:
        """Return the MLflow tags of every trial: the device and the number of threads."""
        logical = self.slots.gpus > 0 and self.device_type == "cpu"
        return {
            DEVICE: f"{self.device.name}{' (logical GPU)' * logical}",
            THREADS: str(self.slots.threads),
        }


@dataclass(frozen=True)
class SearchSpec:
    """A search that can start. `arguments` are the command line as typed.

    Of a nested search this is the last one, over all patients, and `outer` has the searches that
    come before it, one for each outer fold.
    """

    options: SearchOptions
    location: SearchLocation
    data: SearchData
    space: SearchSpace
    compute: Compute
    arguments: tuple[str, ...] = ()
    outer: tuple[SearchSpec, ...] = ()

    @property
    def budget(self) -> int | None:
        """Return the total number of trials, at most one for each point of the space.

        None if only a time budget limits them. A trial repeated with another seed would only raise
        the best of the scores; replicates measure how much a score depends on the seed.
        """
        wanted = math.inf if self.options.budget is None else self.options.budget
        smallest = min(wanted, self.space.size)
        return None if smallest == math.inf else int(smallest)

    @property
    def packages(self) -> tuple[str, ...]:
        """Return the distributions of networks of the space that are not built in."""
        names = [config.network for config in self.space.examples("network")]
        added = (network_origin(name) for name in names if name not in BUILT_IN)
        return tuple(sorted({origin.distribution for origin in added}))

    def with_compute(self, **changes: Any) -> SearchSpec:
        """Return the spec with some fields of `compute` replaced."""
        return dataclasses.replace(self, compute=dataclasses.replace(self.compute, **changes))


def trial_identity(options: SearchOptions, space: SearchSpace, data: SearchData) -> dict[str, Any]:
    """Return what makes trials comparable, one entry per field, so that a difference has a name.

    The outer fold itself is none: its split is bound to the study, and its seed is in here.
    """
    fixed = {
        f"field {k}": v
        for k, v in space.base.as_dict().items()
        if k not in space.parameters and k not in ("seed", "epochs")
    }
    if not data.is_resampled:
        fixed.pop("field resampling", None)  # it would refuse to resume older searches for nothing
    # The path may stay while the file, or the YAML beside it, changes. Older searches have none.
    encoders = {f"encoder '{e.given}'": e.identity for e in data.encoders}
    ranges = {f"parameter {k}": p.model_dump() for k, p in space.parameters.items()}
    order = {FOLD_ORDER: options.order} if options.folds > 1 else {}
    outer = {OUTER_FOLDS: options.outer_folds} if options.outer_folds > 1 else {}
    return {
        **task_identity(data.datamodule.clips.task),
        "protocol": options.protocol,
        "metric": options.metric,
        LEVEL: options.level,
        "folds": options.folds,
        **order,
        **outer,
        RESHUFFLE: options.reshuffle,
        "split seed": options.split_seed,
        "epochs": options.epochs,
        "seed": options.seed,
        RECORDINGS: data_digest(data.datamodule, data.sources),
        "searched fields": sorted(space.parameters),
        **ranges,
        **fixed,
        **encoders,
    }


def task_identity(task: Task) -> dict[str, Any]:
    """Return the task's name and, for a task from a file, which may be edited, its classes."""
    if task.name in TASKS:
        return {"task": task.name}
    classes = [f"{name}: {', '.join(group)}" for name, group in task.grouping.items()]
    return {"task": task.name, "task classes": classes}
