"""Between Ray Tune and the recorder: which trial comes next, and how each one ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from ray import tune
from ray.tune.search import Searcher

from resp_tune.tuning.study import State


class Runs(Protocol):
    """What Ray is driven by: the trials of a search, or the replicates of its best."""

    @property
    def epochs(self) -> int:
        """Epochs that a run must report to have finished."""

    def next_trial(self) -> dict[str, Any] | None:
        """What a worker needs for the next run, with the `key` that the calls below name it by."""

    def advance(
        self, key: Any, rows: Sequence[dict[str, float]], /, micro_batch: int | None = None
    ) -> None:
        """New epochs of a run, and the micro-batch it went on with where memory was short."""

    def end(self, key: Any, state: State, reason: str | None = None, /) -> None:
        """The end of a run."""

    def stopped(self, key: Any, /) -> str | None:
        """Why a run must not go on; None where it may."""


class StudySearcher(Searcher):
    """Ray Tune's searcher over a recorder. The study is the state; Ray's copies are not used."""

    def __init__(self, runs: Runs, say: Callable[[str], None]) -> None:
        super().__init__()
        self.runs, self.say = runs, say
        self.keys: dict[str, Any] = {}

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
        config = self.runs.next_trial()
        if config is None:
            return Searcher.FINISHED
        self.keys[trial_id] = config["key"]
        return config

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """New epochs of a trial that goes on."""
        self._say_remark(result)
        self.runs.advance(self.keys[trial_id], result["epochs"], result["micro_batch"])

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """The end of a trial. `error` means that its worker was lost more often than is retried."""
        key = self.keys.pop(trial_id)
        if result is None or error:
            self.runs.end(key, "failed", "its worker was lost again and again")
            return
        self._say_remark(result)
        self.runs.advance(key, result["epochs"], result["micro_batch"])
        if result["diverged"]:
            reason = result["error"] or f"the loss of epoch {result['epoch']} is not finite"
            self.runs.end(key, "diverged", reason)
        elif result["error"]:
            self.runs.end(key, "failed", result["error"])
        elif result["epoch"] == self.runs.epochs:
            self.runs.end(key, "finished")
        else:
            self.runs.end(key, "pruned", self.runs.stopped(key) or "scheduler")

    def _say_remark(self, result: dict[str, Any]) -> None:
        if result["remark"]:
            self.say(result["remark"])

    def save(self, checkpoint_path: str) -> None:
        """Ray expects a file; what it would hold is in the study."""
        Path(checkpoint_path).write_text("the Optuna study is the state of this search\n")

    def restore(self, checkpoint_path: str) -> None:
        """Nothing is read back."""


class Stops(tune.Stopper):
    """Stops a running trial at its next report once the recorder wants no more of it."""

    def __init__(self, searcher: StudySearcher) -> None:
        self.searcher = searcher

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, as for the searcher."""
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """True for a trial that must not go on."""
        key = self.searcher.keys.get(trial_id)
        return key is not None and self.searcher.runs.stopped(key) is not None

    def stop_all(self) -> bool:
        """Never: each trial ends at its own next report, so that its epochs are kept."""
        return False
