"""Report the trials of a search to MLflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from resp_tune.study.study import TrialRecord, best_of
from resp_tune.tracking.search_run import SearchRuns
from resp_tune.training.metrics import METRICS


class TrackingListener:
    """A listener of the trial queue that writes to MLflow what it has not got yet."""

    def __init__(self, runs: SearchRuns, metric: str, tags: Mapping[str, str]) -> None:
        self.runs, self.metric, self.tags = runs, metric, tags
        self.finished: list[TrialRecord] = []

    def replay(self, trials: Sequence[TrialRecord]) -> None:
        """Report the ended trials and replicates of the study; what MLflow has is not changed."""
        for trial in trials:
            if trial.state is not None:
                self.started(trial)
                self.ended(trial)

    def started(self, trial: TrialRecord) -> None:
        """Open the trial's run."""
        params = {k: v for k, v in trial.config.as_dict().items() if k != "seed"}
        # `again`: a replicate that had failed, or was stopped, runs once more.
        again = trial.state is None
        self.runs.start_trial(
            trial.key, params=params, seed=trial.config.seed, tags=self.tags, again=again
        )
        # Epochs from before the driver was killed may not have reached MLflow.
        self.advanced(trial, trial.epochs)

    def advanced(self, trial: TrialRecord, epochs: Sequence[Mapping[str, float]]) -> None:
        """Log new epochs."""
        self.runs.log_epochs(trial.key, epochs)

    def ended(self, trial: TrialRecord) -> None:
        """End the trial's run; the parent run carries the best score so far."""
        if trial.state is None:
            return
        # Pruned trials show their last value, or the table sorted by score would show nothing.
        last = trial.epochs[-1].get(f"val_{self.metric}") if trial.epochs else None
        self.runs.end_trial(
            trial.key,
            trial.state,
            score=METRICS[self.metric].worst if trial.state == "diverged" else last,
            seconds=trial.seconds,
            error=trial.error,
            micro_batch=trial.config.micro_batch,
        )
        if trial.state == "finished" and not trial.key.replicate:
            self.finished.append(trial)
            best = best_of(self.finished, self.metric)
            if best is not None and best.score is not None:
                self.runs.log_best(best.score, best.number)
