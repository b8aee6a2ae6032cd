"""What the trials of a search share, and how a process starts or resumes a training with it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from resp_tune.cluster.node_requirements import NodeRequirements
from resp_tune.cluster.resources import LOGICAL_GPUS
from resp_tune.common.trial_key import TrialKey
from resp_tune.config import TrialConfig
from resp_tune.execution.trial_artifacts import TrialArtifacts
from resp_tune.storage.object_store import ObjectPath

if TYPE_CHECKING:
    from resp_tune.training.datamodule import FeatureCaches, FoldTables
    from resp_tune.training.loop import Training, TrainingData


@dataclass(frozen=True)
class TrialContext:
    """What all trials of a search share; sent to the workers once, by Ray's object store.

    `rungs` are the epochs after which the scheduler needs a report, `gpus` the share of one trial,
    `timeout` the seconds of one attempt at a trial, `study` the study's id. `remote` is the object
    store that `trials_folder` is a copy of; each node has its own copy. `requirements` are set on
    a cluster, whose nodes may join at any time.
    """

    folds: Sequence[FoldTables]
    caches: FeatureCaches
    trials_folder: Path
    metric: str
    rungs: tuple[int, ...]
    threads: int
    gpus: float
    timeout: float | None = None
    study: str | None = None
    remote: ObjectPath | None = None
    requirements: NodeRequirements | None = None

    @property
    def artifacts(self) -> TrialArtifacts:
        """Return where the trials keep their files."""
        return TrialArtifacts(self.trials_folder, self.remote)

    def start_training(self, config: TrialConfig) -> Training:
        """Return a new training of `config` in this process."""
        from resp_tune.training.loop import Training

        folds, device = self._prepare(config)
        return Training(config, folds, device)

    def resume_training(self, config: TrialConfig, key: TrialKey) -> tuple[Training, str | None]:
        """Return the training as the checkpoint of run `key` left it, or a new one.

        The second value is a message if the checkpoint is damaged or the storage does not answer.
        """
        from resp_tune.training.checkpoint import CHECKPOINT, resume

        outage = self.artifacts.fetch_newer_checkpoint(key.folder, config, self.study)
        path = self.artifacts.local_folder / key.folder / CHECKPOINT
        training, damage = resume(config, *self._prepare(config), path, self.study)
        if damage:
            return training, f"'{path}' {damage}: the trial restarts from its first epoch"
        if outage:
            return training, (
                f"trial {key.label}: the storage does not answer ({outage}): it resumes from epoch "
                f"{len(training.history)}, whose checkpoint is on this machine"
            )
        return training, None

    def _prepare(self, config: TrialConfig) -> tuple[list[TrainingData], str]:
        """Return the folds' tensors and the device, after setting the process's threads."""
        import torch

        torch.set_num_threads(self.threads)
        frames = self.caches.frames(config.front_end, workers=self.threads)
        return [fold.tensors(frames, config.front_end) for fold in self.folds], self.device()

    def device(self) -> str:
        """Return the torch device of a trial, after limiting the process to its share of a GPU."""
        import torch

        from resp_tune.training.memory import limit_gpu_memory

        if not self.gpus or os.environ.get(LOGICAL_GPUS) == "1":
            return "cpu"
        if not torch.cuda.is_available():
            raise RuntimeError(
                "Ray assigned a GPU to this trial and torch finds none: check the GPU driver, or "
                f"give --gpus 0 (rehearsals without a GPU: {LOGICAL_GPUS}=1)"
            )
        limit_gpu_memory("cuda", self.gpus)
        return "cuda"
