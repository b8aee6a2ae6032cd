"""What follows a search: MLflow, and the console with a live table or a line per ended trial."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from resp_tune.common.text import short
from resp_tune.harness.options import SearchOptions
from resp_tune.study.study import TrialRecord, best_of, ranked
from resp_tune.study.trial_queue import Listener
from resp_tune.tracking.search_run import SearchRuns
from resp_tune.training.metrics import METRICS

ROWS = 12
_STYLES = {"finished": "green", "pruned": "yellow", "diverged": "red", "failed": "red"}


class TrackingListener(Listener):
    """A listener of the trial queue that writes to MLflow what it has not got yet.

    `tags` are those of every trial, `encoders` those of the trials with an encoder, by its path.
    """

    def __init__(
        self,
        runs: SearchRuns,
        metric: str,
        tags: Mapping[str, str],
        encoders: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self.runs, self.metric, self.tags = runs, metric, tags
        self.encoders = encoders or {}
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
        tags = {**self.tags, **self.encoders.get(trial.config.encoder, {})}
        self.runs.trials.start_trial(
            trial.key, params=params, seed=trial.config.seed, tags=tags, again=again
        )
        # Epochs from before the driver was killed may not have reached MLflow.
        self.advanced(trial, trial.epochs)

    def advanced(self, trial: TrialRecord, epochs: Sequence[Mapping[str, float]]) -> None:
        """Log new epochs, but those that only repeat the figures of the one before."""
        self.runs.trials.log_epochs(trial.key, without_repeats(epochs))

    def ended(self, trial: TrialRecord) -> None:
        """End the trial's run; the parent run carries the best score so far."""
        if trial.state is None:
            return
        # Pruned trials show their last value, or the table sorted by score would show nothing.
        last = trial.epochs[-1].get(f"val_{self.metric}") if trial.epochs else None
        self.runs.trials.end_trial(
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


def without_repeats(epochs: Sequence[Mapping[str, float]]) -> list[Mapping[str, float]]:
    """Return the rows of `epochs` that differ from the one before in more than time.

    A linear head is fitted in the first epoch of a fold: its others would cost more in MLflow than
    the fit.
    """
    kept: list[Mapping[str, float]] = []
    before: Mapping[str, float] = {}
    for row in epochs:
        figures = {name: value for name, value in row.items() if name not in ("epoch", "seconds")}
        if figures != before:
            kept.append(row)
        before = figures
    return kept


class LiveTable(Listener):
    """A listener that shows running trials, the best ended ones, and how many have ended.

    `what` is `trials` or `replicates`; `past` are those of earlier runs of the command. Trials run
    within the context `live`. In a nested search it says which of the searches runs.
    """

    def __init__(
        self,
        console: Console,
        options: SearchOptions,
        what: str,
        total: int | None,
        past: Sequence[TrialRecord],
    ) -> None:
        self.console, self.metric = console, options.objective
        self.epochs = options.epochs * options.folds_in_sequence
        self.what = what
        self.which = f"{options.place}: " if options.outer_folds > 1 else ""
        self.trials = {t.key.label: t for t in past if t.state is not None}
        self.progress = Progress(
            TextColumn(self.which + what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            console=console,
        )  # fmt: skip
        self.task = self.progress.add_task(what, total=total)
        self.live: AbstractContextManager[object] = nullcontext()
        if console.is_terminal:
            self.live = Live(console=console, refresh_per_second=4, get_renderable=self.render)
        self._count()

    def started(self, trial: TrialRecord, epochs: Sequence[Mapping[str, float]] = ()) -> None:
        """Show a running trial, with its new epochs."""
        self.trials[trial.key.label] = trial

    advanced = started

    def ended(self, trial: TrialRecord) -> None:
        """Show a trial's end."""
        self.trials[trial.key.label] = trial
        self._count()
        if not self.console.is_terminal:
            self.console.print(self._line(trial), highlight=False, soft_wrap=True)

    def _count(self) -> None:
        done = sum(t.state is not None for t in self.trials.values())
        self.progress.update(self.task, completed=done)

    def _line(self, trial: TrialRecord) -> str:
        shown = "" if trial.score is None else f"  {self.metric} {trial.score:.4f}"
        values = ", ".join(f"{k} {short(v)}" for k, v in trial.values.items())
        return (
            f"{self.which}{self.what[:-1]} {trial.key.label:>3} {trial.state:<8} "
            f"{len(trial.epochs):>3} epochs {trial.seconds:6.1f} s{shown}  ({values})"
        )

    def render(self) -> Group:
        """Return the table: running trials by number, then the best of the others."""
        trials = list(self.trials.values())  # the display's thread reads while trials come in
        running = [t for t in trials if t.state is None]
        best = ranked(trials, self.metric)
        others = [t for t in trials if t.state is not None and t.score is None]
        shown = [*running, *best, *others][:ROWS]
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in (self.what[:-1], "state", "epoch", self.metric, "s"):
            table.add_column(column, justify="left" if column == "state" else "right")
        for name in shown[0].values if shown else ():
            table.add_column(name, justify="right", overflow="fold")
        for t in shown:
            table.add_row(*self._cells(t))
        hidden = len(self.trials) - len(shown)
        more = [Text(f"… and {hidden} more", style="dim")] if hidden > 0 else []
        return Group(table, *more, self.progress)

    def _cells(self, trial: TrialRecord) -> list[str]:
        state = trial.state or "running"
        value = trial.score
        if value is None and trial.epochs:
            value = trial.epochs[-1].get(f"val_{self.metric}")
        return [
            trial.key.label,
            f"[{_STYLES.get(state, 'cyan')}]{state}[/]",
            f"{len(trial.epochs)}/{self.epochs}",
            "" if value is None else f"{value:.4f}",
            f"{trial.seconds:.0f}",
            *(short(v) for v in trial.values.values()),
        ]
