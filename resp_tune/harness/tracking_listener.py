"""Tells MLflow what happens to the trials of a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from resp_tune.study.study import TrialRecord, best_of
from resp_tune.tracking.search_run import SearchRuns
from resp_tune.training.metrics import METRICS


class TrackingListener:
    """A listener of the recorder that writes to MLflow, and replays what MLflow may have missed."""

    def __init__(self, runs: SearchRuns, metric: str, tags: Mapping[str, str]) -> None:
        self.runs, self.metric, self.tags = runs, metric, tags
        self.finished: list[TrialRecord] = []

    def replay(self, trials: Sequence[TrialRecord]) -> None:
        """Trials and replicates of the study; what is in MLflow already stays as it is."""
        for trial in trials:
            if trial.state is not None:
                self.started(trial, trial.config.seed)
                self.ended(trial)

    def started(self, trial: TrialRecord, seed: int) -> None:
        """A trial was handed out."""
        params = {k: v for k, v in trial.config.as_dict().items() if k != "seed"}
        self.runs.start_trial(
            trial.key,
            params=params,
            seed=seed,
            tags=self.tags,
            again=trial.state is None,  # a replicate that had failed, or was stopped, is run anew
        )
        # What a trial had done before its driver was killed may not have reached MLflow.
        self.advanced(trial, trial.epochs)

    def advanced(self, trial: TrialRecord, epochs: Sequence[Mapping[str, float]]) -> None:
        """A trial has new epochs."""
        self.runs.log_epochs(trial.key, epochs)

    def ended(self, trial: TrialRecord) -> None:
        """A trial is over; the parent run carries the best so far."""
        if trial.state is None:
            return
        # Pruned trials show where they stood, or the table sorted by score would show nothing.
        stood = trial.epochs[-1].get(f"val_{self.metric}") if trial.epochs else None
        score = METRICS[self.metric].worst if trial.state == "diverged" else stood
        self.runs.end_trial(
            trial.key,
            trial.state,
            score=score,
            seconds=trial.seconds,
            error=trial.error,
            micro_batch=trial.config.micro_batch,
        )
        if trial.state == "finished" and not trial.key.replicate:
            self.finished.append(trial)
            best = best_of(self.finished, self.metric)
            if best is not None and best.score is not None:
                self.runs.best(best.score, best.number)
