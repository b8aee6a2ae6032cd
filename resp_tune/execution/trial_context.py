"""What the trials of a search share: folds, caches, files, and the compute device."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from resp_tune.cluster.node_probe import NodeRequirements
from resp_tune.cluster.resources import LOGICAL_GPUS
from resp_tune.common.choices import FoldOrder
from resp_tune.common.trial_key import TrialKey
from resp_tune.storage.object_store import ObjectPath, StorageError

if TYPE_CHECKING:
    from resp_tune.features.cache import FeatureCaches
    from resp_tune.training.datamodule import FoldTables, Reshuffle
    from resp_tune.training.loop import Training


@dataclass(frozen=True)
class TrialArtifacts:
    """The folder `trials/` of a search; `remote` is the object store that holds it, if any does."""

    folder: Path
    remote: ObjectPath | None = None

    @property
    def local_folder(self) -> Path:
        """Return the folder on this machine."""
        return self.folder if self.remote is None else self.remote.local_copy

    def fetch_newer_checkpoint(
        self, run_folder: Path | str, training: Training, study: str | None
    ) -> str | None:
        """Replace the local checkpoint of a run by the remote one if that has more epochs.

        Returns the reason if the store does not answer: the run may then repeat epochs that it has
        had elsewhere, with the same result.
        """
        if self.remote is None:
            return None
        from resp_tune.training.loop import CHECKPOINT, epochs_in

        path, config = self.local_folder / run_folder / CHECKPOINT, training.config
        if (local_epochs := epochs_in(path, config, study)) == training.epochs:
            return None
        fetched = path.with_name(f".{CHECKPOINT}.fetched.part")
        try:
            if not (self.remote / run_folder).fetch(CHECKPOINT, fetched):
                return None
        except StorageError as error:
            return str(error)
        if epochs_in(fetched, config, study) > local_epochs:
            fetched.replace(path)
        fetched.unlink(missing_ok=True)
        return None


@dataclass(frozen=True)
class TrialContext:
    """What all trials of a search share; sent to the workers once, by Ray's object store.

    `rungs` are the steps after which a scheduler needs a report, `gpus` the share of one trial,
    `timeout` the seconds of one attempt at a trial, `study` the study's id. `requirements` are
    set on a cluster, whose nodes may join at any time.
    """

    folds: Sequence[FoldTables]
    caches: FeatureCaches
    artifacts: TrialArtifacts
    metric: str
    rungs: tuple[int, ...]
    threads: int
    gpus: float
    timeout: float | None = None
    study: str | None = None
    requirements: NodeRequirements | None = None
    fold_order: FoldOrder = "together"
    reshuffle: Reshuffle | None = None

    def folds_of(self, key: TrialKey) -> Sequence[FoldTables]:
        """Return the folds of a run: with `reshuffle` each trial, but no replicate, has its own."""
        if self.reshuffle is None or key.replicate:
            return self.folds
        return self.reshuffle.folds_of(key.number)

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
