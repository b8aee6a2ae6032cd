"""Between Ray Tune and the recorder: which trial comes next, and how each one ended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from resp_tune.tuning.recorder import Recorder


class StudySearcher(Searcher):
    """Ray Tune's searcher over a recorder. The study is the state; Ray's copies are not used."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder
        self.numbers: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray pickles a copy for `Tuner.restore`, which is never used."""
        return {}

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        """The study knows its metric and space; Ray has nothing to add."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # Ray's own FINISHED is a str
        """The next trial's config, or `FINISHED` when the budget is met."""
        config = self.recorder.next_trial()
        if config is None:
            return Searcher.FINISHED
        self.numbers[trial_id] = config["number"]
        return config

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """New epochs of a trial that goes on."""
        self.recorder.advance(self.numbers[trial_id], result["epochs"])

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """The end of a trial. `error` means that its worker was lost more often than is retried."""
        number = self.numbers.pop(trial_id)
        if result is None or error:
            self.recorder.end(number, "failed", "its worker was lost again and again")
            return
        self.recorder.advance(number, result["epochs"])
        if result["diverged"]:
            reason = result["error"] or f"the loss of epoch {result['epoch']} is not finite"
            self.recorder.end(number, "diverged", reason)
        elif result["error"]:
            self.recorder.end(number, "failed", result["error"])
        elif result["epoch"] == self.recorder.epochs:
            self.recorder.end(number, "finished")
        else:
            late = self.recorder.out_of_time()
            self.recorder.end(number, "pruned", "time budget" if late else "scheduler")

    def save(self, checkpoint_path: str) -> None:
        """Ray expects a file; what it would hold is in the study."""
        Path(checkpoint_path).write_text("the Optuna study is the state of this search\n")

    def restore(self, checkpoint_path: str) -> None:
        """Nothing is read back."""


class TimeBudget(tune.Stopper):
    """Stops every running trial once the recorder is out of time."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, as for the searcher."""
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """True for a trial that has reported after the deadline."""
        return self.recorder.out_of_time()

    def stop_all(self) -> bool:
        """Never: each trial ends at its own next report, so that its epochs are kept."""
        return False
