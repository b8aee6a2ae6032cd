"""Select the winning trial, and load the trained networks that make it a model."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
import torch
from torch import nn

from resp_tune.errors import RunError
from resp_tune.features.cache import FeatureCaches
from resp_tune.harness.spec import SearchSpec
from resp_tune.study.replicates import Candidate, candidates, eligible, replicates, select
from resp_tune.study.study import TrialRecord, best_of
from resp_tune.training.loop import CHECKPOINT, Training, resume, save_checkpoint

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Winner:
    """The winning trial, and the runs whose networks make the model.

    With replicates, `chosen` holds those of the trial, and `runs` are the finished ones among
    them; without, `runs` is the trial itself.
    """

    trial: TrialRecord
    runs: tuple[TrialRecord, ...]
    chosen: Candidate | None
    candidates: tuple[Candidate, ...]

    def candidate_summaries(self) -> list[dict[str, Any]]:
        """Return the candidates as `summary.json` lists them."""
        numbers = {c.trial.number for c in eligible(self.candidates)}
        return [c.summary(dropped=c.trial.number not in numbers) for c in self.candidates]

    @property
    def seeds(self) -> list[int]:
        """Return the seed of each run."""
        return [run.config.seed for run in self.runs]

    @property
    def validation(self) -> dict[str, float]:
        """Return each validation metric, the mean over the runs."""
        return {
            name: float(np.mean([run.validation[name] for run in self.runs]))
            for name in self.runs[0].validation
        }


def select_winner(
    study: optuna.Study, trials: Sequence[TrialRecord], metric: str, count: int
) -> Winner:
    """Select by the best score or, with `count` > 1 replicates, by the best lower bound.

    Raises `RunError` if no trial has finished, and if no candidate has all its seeds: a winner by
    one lucky score would use up the first test-set access.
    """
    best = best_of(trials, metric)
    if best is None:
        raise _none_finished(trials)
    if count == 1:
        return Winner(best, (best,), None, ())
    rivals = candidates(trials, replicates(study, trials), metric=metric, count=count)
    chosen = select(rivals, count)
    if chosen is not None:
        return Winner(chosen.trial, tuple(chosen.finished), chosen, tuple(rivals))
    failed = next((c for c in rivals if c.failure is not None), None)
    if failed is None:
        raise RunError(
            "all replicates have diverged: there is no winner, and the test set was not "
            "evaluated; search again under another --name with a lower lr"
        )
    raise RunError(
        f"no candidate has all its {count} seeds, and the test set was not evaluated: a replicate "
        f"of trial {failed.trial.number} failed with: {failed.failure}; rerun the same command to "
        "retry"
    )


def _none_finished(trials: Sequence[TrialRecord]) -> RunError:
    """Return the error of a search without a finished trial, with that of its first failed one."""
    if first := next((t for t in trials if t.state == "failed"), None):
        return RunError(
            f"no trial finished; trial {first.number} failed with: {first.error} "
            f"(whole traceback: trials/{first.number}/error.txt)"
        )
    states = ", ".join(f"trial {t.number} {t.state}" for t in trials[:3])
    return RunError(f"no trial finished ({states}): give more time or trials, or a lower lr")


def load_networks(
    spec: SearchSpec, study_id: str, runs: Sequence[TrialRecord], caches: FeatureCaches
) -> list[nn.Module]:
    """Return the networks of finished runs: those of the first run's folds, then of the next run.

    A run whose checkpoint is missing or damaged is trained again here.
    """
    artifacts, compute, networks = spec.location.trials, spec.compute, list[nn.Module]()
    for run in runs:
        path = artifacts.local_folder / run.key.folder / CHECKPOINT
        tables, cpus = spec.data.datamodule.folds(), compute.machine.cpus
        folds = [fold.load(caches, run.config, workers=cpus) for fold in tables]
        device, order = compute.driver_device_type, spec.options.order
        training = Training(run.config, folds, device, order)
        if reason := artifacts.fetch_newer_checkpoint(run.key.folder, training, study_id):
            log.info(f"the checkpoint of trial {run.key.label} cannot be fetched ({reason})")
        damage = resume(training, path, study_id)
        if not training.done:
            problem = damage or "is missing or too old"
            log.info(f"'{path}' {problem}: trial {run.key.label} is trained again")
            threads = torch.get_num_threads()
            torch.set_num_threads(compute.slots.threads)  # as in the search: the same bits
            while not training.done:
                training.run_epoch()
            torch.set_num_threads(threads)
            save_checkpoint(path, training, study_id)
        networks += training.networks()
    return networks
