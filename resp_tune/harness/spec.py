"""A search that can start: what it is, on what, and what its trials mean."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from resp_tune.cluster.connect import Cluster
from resp_tune.cluster.resources import LOGICAL_GPUS, Machine, TrialResources
from resp_tune.common.paths import cache_folder
from resp_tune.config import FrontEnd
from resp_tune.data.tasks import TASKS, Task
from resp_tune.execution.trial_artifacts import TrialArtifacts
from resp_tune.features.cache import AudioSource
from resp_tune.harness.options import SearchOptions
from resp_tune.space.search_space import SearchSpace
from resp_tune.storage.object_store import ObjectPath
from resp_tune.study.study import RECORDINGS
from resp_tune.tracking.load_trial import DEVICE, THREADS
from resp_tune.training.compute_device import ComputeDevice, detect_compute_device
from resp_tune.training.datamodule import DataModule
from resp_tune.training.fingerprint import data_digest


@dataclass(frozen=True)
class SearchSpec:
    """A search that can start."""

    options: SearchOptions
    name: str
    folder: Path
    remote: (
        ObjectPath | None
    )  # what `folder` is this machine's copy of, where that is an object store
    tracking_uri: str
    datamodule: DataModule
    space: SearchSpace
    front_ends: tuple[FrontEnd, ...]
    machine: Machine  # the driver's own
    slots: TrialResources
    sources: tuple[AudioSource, ...]  # the recordings that the search reads, with hashes of them
    arguments: tuple[str, ...]  # as typed
    cluster: Cluster | None = None  # None: a Ray of our own, on this machine
    nodes_device: ComputeDevice | None = None  # what a trial gets on the cluster
    # By type of GPU, where these take different numbers of trials; `slots` then is of a whole GPU.
    typed: Mapping[str, TrialResources] | None = None

    @property
    def trials(self) -> TrialArtifacts:
        """Where the trials keep their files."""
        return TrialArtifacts(self.folder / "trials", self.remote and self.remote / "trials")

    @cached_property
    def paths(self) -> dict[str, Path]:
        """Where the recordings that the search reads lie, by stem."""
        everywhere = {r.stem: r.path.absolute() for r in self.datamodule.dataset.recordings}
        return {source.stem: everywhere[source.stem] for source in self.sources}

    @property
    def gpus(self) -> int:
        """GPUs that a Ray of our own is started with."""
        asked = self.options.gpus
        return self.machine.gpus if asked is None else asked

    @property
    def most_at_once(self) -> int | None:
        """Trials that may run at once, however large a cluster grows; None: as many as it holds."""
        asked = [] if self.options.concurrency is None else [self.options.concurrency]
        if self.options.gpus:
            asked.append(round(self.options.gpus / self.slots.gpus))
        return min(asked, default=None)

    @property
    def data_name(self) -> str:
        """What files call the data: not its path, which says whose machine it was."""
        root = self.datamodule.dataset.root.absolute()
        built_in = root.is_relative_to(cache_folder() / "synthetic")
        return "built-in synthetic set" if built_in else root.name

    @property
    def device_type(self) -> str:
        """Where trials compute: `cuda`, or `cpu` also for logical GPUs."""
        real = self.slots.gpus > 0 and os.environ.get(LOGICAL_GPUS) != "1"
        return "cuda" if real else "cpu"

    @cached_property
    def device(self) -> ComputeDevice:
        """What trials compute on."""
        return self.nodes_device or detect_compute_device(self.device_type)

    @property
    def own_device(self) -> str:
        """What this process computes on: the driver of a cluster may have no GPU."""
        import torch

        return self.device_type if torch.cuda.is_available() else "cpu"

    @property
    def trial_tags(self) -> dict[str, str]:
        """What MLflow says of every trial: the device, and the threads that its bits depend on."""
        rehearsed = self.slots.gpus > 0 and self.device_type == "cpu"
        return {
            DEVICE: f"{self.device.name}{' (logical GPU)' * rehearsed}",
            THREADS: str(self.slots.threads),
        }

    def meaning(self) -> dict[str, Any]:
        """What makes a trial of this search comparable with another: bound to its study."""
        return trial_identity(self.options, self.space, self.datamodule, self.sources)


def trial_identity(
    options: SearchOptions,
    space: SearchSpace,
    datamodule: DataModule,
    sources: Sequence[AudioSource],
) -> dict[str, Any]:
    """The base config's fields stand by name, so that a difference can be named."""
    fixed = {
        f"field {k}": v
        for k, v in space.base.as_dict().items()
        if k not in space.parameters and k not in ("seed", "epochs")
    }
    ranges = {f"parameter {k}": p.model_dump() for k, p in space.parameters.items()}
    return {
        **task_identity(datamodule.clips.task),
        "protocol": options.protocol,
        "metric": options.metric,
        "folds": options.folds,
        "split seed": options.split_seed,
        "epochs": options.epochs,
        "seed": options.seed,
        RECORDINGS: data_digest(datamodule, sources),
        "searched fields": sorted(space.parameters),
        **ranges,
        **fixed,
    }


def task_identity(task: Task) -> dict[str, Any]:
    """What binds a study to a task: of one from a file, which may be edited, also its classes."""
    if task.name in TASKS:
        return {"task": task.name}
    classes = [f"{name}: {', '.join(group)}" for name, group in task.grouping.items()]
    return {"task": task.name, "task classes": classes}
