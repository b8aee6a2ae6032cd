"""Which trial has won, and the trained networks that make it a model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
import torch

from resp_tune.errors import RunError
from resp_tune.harness.spec import SearchSpec
from resp_tune.study.replicates import Candidate, candidates, eligible, replicates, select
from resp_tune.study.study import TrialRecord, best_of
from resp_tune.training.checkpoint import CHECKPOINT, resume, save_checkpoint
from resp_tune.training.datamodule import FeatureCaches
from resp_tune.training.network import SoundNet

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Winner:
    """The trial that won, and the runs of it whose networks make the bundle.

    `chosen` holds the replicates that it was chosen by; None where it has only the score of the
    search, and `runs` is that one trial.
    """

    trial: TrialRecord
    runs: tuple[TrialRecord, ...]
    chosen: Candidate | None
    candidates: tuple[Candidate, ...]

    @property
    def told(self) -> list[dict[str, Any]]:
        """The candidates as `summary.json` has them."""
        able = {c.trial.number for c in eligible(self.candidates)}
        return [c.summary(dropped=c.trial.number not in able) for c in self.candidates]

    @property
    def seeds(self) -> list[int]:
        """Of the networks."""
        return [run.config.seed for run in self.runs]

    @property
    def validation(self) -> dict[str, float]:
        """Each metric, the mean over the runs."""
        return {
            name: float(np.mean([run.validation[name] for run in self.runs]))
            for name in self.runs[0].validation
        }


def choose_winner(spec: SearchSpec, study: optuna.Study, trials: Sequence[TrialRecord]) -> Winner:
    """The best bound over seeds with replicates, else the best score of the search.

    Raises `RunError` where no candidate has all its seeds: a winner by one lucky score would read
    the test side before the one that was asked for.
    """
    metric, count = spec.options.metric, spec.options.replicates
    if count == 1:
        best = best_of(trials, metric)
        if best is None:
            raise RunError("no trial has finished: there is no winner")
        return Winner(best, (best,), None, ())
    found = candidates(trials, replicates(study, trials), metric=metric, count=count)
    chosen = select(found, count)
    if chosen is not None:
        return Winner(chosen.trial, tuple(chosen.finished), chosen, tuple(found))
    failed = next((c for c in found if c.failure is not None), None)
    if failed is None:
        raise RunError(
            "all replicates have diverged: there is no winner, and the test side was not read; "
            "search again under another --name with a lower lr"
        )
    raise RunError(
        f"no candidate has all its {count} seeds, and the test side was not read: a replicate of "
        f"trial {failed.trial.number} failed with: {failed.failure}; the same command tries again"
    )


def trained_networks(
    spec: SearchSpec, study: str, runs: Sequence[TrialRecord], caches: FeatureCaches
) -> list[SoundNet]:
    """The networks of finished runs of a study: those of a run's folds, then those of the next run.

    A run whose checkpoint is gone or damaged is trained again, here.
    """
    networks, files = [], spec.location.trials
    for run in runs:
        if away := files.newest_checkpoint(run.key.folder, run.config, study):
            log.info(
                f"the storage cannot be asked for the checkpoint of trial {run.key.label} ({away})"
            )
        path = files.here / run.key.folder / CHECKPOINT
        front_end = run.config.front_end
        frames = caches.frames(front_end, workers=spec.compute.machine.cpus)
        folds = [fold.tensors(frames, front_end) for fold in spec.data.datamodule.folds()]
        training, damage = resume(run.config, folds, spec.compute.driver_device_type, path, study)
        if not training.done:
            log.info(
                f"'{path}' {damage or 'is not there or too old'}: "
                f"trial {run.key.label} is trained again"
            )
            threads = torch.get_num_threads()
            torch.set_num_threads(spec.compute.slots.threads)  # as it was trained: the same bits
            while not training.done:
                training.run_epoch()
            torch.set_num_threads(threads)
            save_checkpoint(path, training, study)
        networks += training.networks()
    return networks
