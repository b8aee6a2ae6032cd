"""Which trial has won, and the trained networks that make it a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import optuna
import torch

from resp_tune.errors import RunError
from resp_tune.learning.checkpoint import CHECKPOINT, resume, save_checkpoint
from resp_tune.learning.network import SoundNet
from resp_tune.learning.problem import Stores
from resp_tune.searching.prepare import Prepared
from resp_tune.tuning.replicates import (
    Candidate,
    by_bound,
    candidates,
    choose,
    dropped,
    replicates,
)
from resp_tune.tuning.study import TrialRecord, best_of

Say = Callable[[str], None]


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


def choose_winner(
    prepared: Prepared, study: optuna.Study, trials: Sequence[TrialRecord], say: Say
) -> Winner:
    """The best bound over seeds where there are replicates, else the best score of the search."""
    metric, count = prepared.settings.metric, prepared.settings.replicates
    runs = replicates(study, trials)
    found = candidates(trials, runs, dropped(study), metric=metric, count=count)
    chosen = choose(found)
    ordered = tuple(by_bound(found))
    if chosen is not None:
        return Winner(chosen.trial, tuple(chosen.finished), chosen, ordered)
    best = best_of(trials, metric)
    if best is None:
        raise RunError("no trial has finished: there is no winner")
    if count > 1:
        say(
            f"no two seeds of the candidates are there to compare: trial {best.number} wins by its "
            "one score in the search; the same command with more time runs the replicates"
        )
    return Winner(best, (best,), None, ordered)


def trained_networks(
    prepared: Prepared, runs: Sequence[TrialRecord], stores: Stores, say: Say
) -> list[SoundNet]:
    """The networks of finished runs: those of a run's folds, then those of the next run.

    A run whose checkpoint is gone or damaged is trained again, here.
    """
    networks = []
    for run in runs:
        path = prepared.folder / "trials" / run.folder / CHECKPOINT
        front_end = run.config.front_end
        frames = stores.frames(front_end, workers=prepared.machine.cpus)
        folds = [fold.tensors(frames, front_end) for fold in prepared.problem.folds()]
        training, damage = resume(run.config, folds, prepared.device_type, path)
        if not training.done:
            say(
                f"'{path}' is {f'damaged ({damage})' if damage else 'not there or too old'}: "
                f"trial {run.label} is trained again"
            )
            torch.set_num_threads(prepared.slots.threads)  # as it was trained: the same bits
            while not training.done:
                training.run_epoch()
            save_checkpoint(path, training)
        networks += training.networks()
    return networks
