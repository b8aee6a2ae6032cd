"""Select the winning trial, or an ensemble of the best, and load the trained networks."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import optuna
import torch
from torch import nn

from resp_tune.common.text import plural
from resp_tune.errors import RunError
from resp_tune.execution.trial_context import TrialArtifacts
from resp_tune.features.cache import FeatureCaches
from resp_tune.harness.options import SearchOptions
from resp_tune.harness.spec import SearchSpec
from resp_tune.study.replicates import Candidate, candidates, eligible, replicates, selectable
from resp_tune.study.study import TrialRecord, ranked
from resp_tune.training.loop import CHECKPOINT, Training, resume, save_checkpoint
from resp_tune.training.model_bundle import Member, waveform_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Winner:
    """The winning trial, and the runs whose networks make the model.

    With replicates, `chosen` holds those of the trial, and `runs` are the finished ones among
    them; without, `runs` is the trial itself. `others` are the further members of an ensemble, best
    first, and `ensemble_validation` its own validation metrics.
    """

    trial: TrialRecord
    runs: tuple[TrialRecord, ...]
    chosen: Candidate | None
    candidates: tuple[Candidate, ...] = ()
    others: tuple[Winner, ...] = ()
    ensemble_validation: Mapping[str, float] | None = None

    def candidate_summaries(self) -> list[dict[str, Any]]:
        """Return the candidates as `summary.json` lists them."""
        numbers = {c.trial.number for c in eligible(self.candidates)}
        return [c.summary(dropped=c.trial.number not in numbers) for c in self.candidates]

    @property
    def score(self) -> float | None:
        """Return the score of the trial, or the mean of its replicates."""
        return self.trial.score if self.chosen is None else self.chosen.mean

    @property
    def members(self) -> tuple[Winner, ...]:
        """Return the trial and the further members of the ensemble, best first."""
        return (self, *self.others)

    @property
    def seeds(self) -> list[int]:
        """Return the seed of each run of the trial."""
        return [run.config.seed for run in self.runs]

    @property
    def validation(self) -> dict[str, float]:
        """Return each validation metric: the mean over the runs, or that of the ensemble."""
        if self.ensemble_validation is not None:
            return dict(self.ensemble_validation)
        each = [run.validation for run in self.runs]
        # A run of an earlier release may lack a metric.
        names = [name for name in each[0] if all(name in one for one in each)]
        return {name: float(np.mean([one[name] for one in each])) for name in names}

    def ensemble_summary(self) -> list[dict[str, Any]] | None:
        """Return the members as `summary.json` lists them, None if there is one alone."""
        if not self.others:
            return None
        return [
            {"number": m.trial.number, "score": m.score, "params": m.trial.values}
            for m in self.members
        ]


def select_winner(
    study: optuna.Study, trials: Sequence[TrialRecord], options: SearchOptions
) -> Winner:
    """Select by the best score or, with several replicates, by the best lower bound.

    With `options.ensemble` above 1 the next best trials join the winner. Raises `RunError` if no
    trial has finished, and if no candidate has all its seeds: a winner by one lucky score would use
    up the first test-set access.
    """
    metric, count = options.objective, options.replicates
    if not (finished := ranked(trials, metric)):
        raise _none_finished(trials)
    if count == 1:
        ordered = [Winner(t, (t,), None) for t in finished]
        return replace(ordered[0], others=_join(ordered, options.ensemble))
    rivals = tuple(candidates(trials, replicates(study, trials), metric=metric, count=count))
    chosen = selectable(rivals, count)
    if not chosen:
        raise _none_selectable(rivals, count)
    ordered = [Winner(c.trial, tuple(c.finished), c) for c in chosen]
    return replace(ordered[0], candidates=rivals, others=_join(ordered, options.ensemble))


def _join(ordered: Sequence[Winner], size: int) -> tuple[Winner, ...]:
    """Return the trials that join the first of `ordered`; log if they are too few for `size`."""
    best, *rest = ordered
    waveform = waveform_of(best.trial.config)
    able = [other for other in rest if waveform_of(other.trial.config) == waveform]
    if 1 + len(able) < size:
        apart = len(rest) - len(able)
        why = f"{plural(1 + len(rest), 'trial')} can be selected"
        if apart:
            what = "sample rate, resampling or encoder"
            why += f", of which {apart} with another {what} than the best"
        log.info(f"note: the ensemble has {1 + len(able)} of {size} members: {why}")
    return tuple(able[: size - 1])


def _none_selectable(rivals: Sequence[Candidate], count: int) -> RunError:
    """Return the error of a search of which no candidate has all its replicates."""
    failed = next((c for c in rivals if c.failure is not None), None)
    if failed is None:
        return RunError(
            "all replicates have diverged: there is no winner, and the test set was not "
            "evaluated; search again under another --name with a lower lr"
        )
    return RunError(
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


def load_members(
    spec: SearchSpec, study_id: str, winner: Winner, caches: FeatureCaches
) -> list[Member]:
    """Return the networks of the winner and of the further members of its ensemble.

    A run whose checkpoint is missing or damaged is trained again here.
    """
    compute, tables = spec.compute, spec.data.datamodule.folds()

    def load(run: TrialRecord) -> list[nn.Module]:
        folds = [t.load(caches, run.config, workers=compute.machine.cpus) for t in tables]
        training = Training(run.config, folds, compute.driver_device_type, spec.options.order)
        _resume_or_train(training, run, spec.location.trials, study_id, compute.slots.threads)
        return training.networks()

    return [
        Member(m.runs[0].config, tuple(network for run in m.runs for network in load(run)))
        for m in winner.members
    ]


def _resume_or_train(
    training: Training, run: TrialRecord, artifacts: TrialArtifacts, study_id: str, threads: int
) -> None:
    """Bring the training of a finished run to its end, from its checkpoint if that is whole."""
    path = artifacts.local_folder / run.key.folder / CHECKPOINT
    if reason := artifacts.fetch_newer_checkpoint(run.key.folder, training, study_id):
        log.info(f"the checkpoint of trial {run.key.label} cannot be fetched ({reason})")
    damage = resume(training, path, study_id)
    if training.done:
        return
    problem = damage or "is missing or too old"
    log.info(f"'{path}' {problem}: trial {run.key.label} is trained again")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)  # as in the search: the same bits
    while not training.done:
        training.run_epoch()
    torch.set_num_threads(before)
    save_checkpoint(path, training, study_id)
