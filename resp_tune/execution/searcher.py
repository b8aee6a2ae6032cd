"""Between Ray Tune and the recorder: which trial comes next, and how each one ended."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from resp_tune.common.choices import State
from resp_tune.common.trial_key import TrialKey
from resp_tune.config import TrialConfig
from resp_tune.errors import RunError
from resp_tune.execution.trainable import half_batch

log = logging.getLogger(__name__)

WORKER_LOSSES = 3  # a trial whose worker dies is taken up again this often
NODE_LOST = "node has died"  # in what Ray says of the actor


class RestartTrialsError(RunError):
    """Raised to run Ray Tune again over what the study holds.

    Ray counts the loss of a worker twice when it died between two trials, and takes the next trial
    for failed at its first loss.
    """


class TrialSource(Protocol):
    """What Ray is driven by: the trials of a search, or the replicates of its best."""

    @property
    def epochs(self) -> int:
        """Epochs that a run must report to have finished."""

    def next_trial(self) -> dict[str, Any] | None:
        """What a worker needs for the next run, with the `key` that the calls below name it by."""

    def advance(
        self, key: TrialKey, rows: Sequence[dict[str, float]], /, micro_batch: int | None = None
    ) -> None:
        """New epochs of a run, and the micro-batch it went on with where memory was short."""

    def end(self, key: TrialKey, state: State, reason: str | None = None, /) -> None:
        """The end of a run."""

    def stop_reason(self, key: TrialKey, /) -> str | None:
        """Why a run must not go on; None where it may."""

    def config(self, key: TrialKey, /) -> TrialConfig:
        """What a run that has not ended goes on with."""


class StudySearcher(Searcher):
    """Ray Tune's searcher over a recorder. The study is the state; Ray's copies are not used.

    `capacity()` is how many trials may run now. `halted`: why the search must stop before its end;
    its trials have not ended then.
    """

    def __init__(self, runs: TrialSource, capacity: Callable[[], int]) -> None:
        super().__init__()
        self.runs, self.capacity = runs, capacity
        self.keys: dict[str, TrialKey] = {}
        self.losses: dict[str, int] = {}  # of workers, that trials have gone on after
        self.halted: Exception | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Ray pickles a copy for `Tuner.restore`, which is never used."""
        return {}

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        """The study knows its metric and space; Ray has nothing to add."""
        return True

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # Ray's own FINISHED is a str
        """The next trial's config, None while there is no room, `FINISHED` at the end."""
        if len(self.keys) >= self.capacity():
            return None
        config = None
        with self._halting():
            config = self.runs.next_trial()
        if config is None:
            return Searcher.FINISHED
        self.keys[trial_id] = config["key"]
        return config

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """New epochs of a trial that goes on."""
        with self._halting():
            self._advance(self.keys[trial_id], result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """The end of a trial. `error`: Ray gives it up, for a loss too many or one told twice."""
        key = self.keys.pop(trial_id)
        losses = self.losses.pop(trial_id, 0)
        with self._halting():
            if (result is None or error) and losses < WORKER_LOSSES:
                raise RestartTrialsError(
                    f"trial {key.label}: it was given to a worker that had just died: the trials "
                    "that ran are handed out anew, each from its checkpoint"
                )
            if result is None or error:
                self.runs.end(key, "failed", "its worker was lost again and again")
            else:
                self._advance(key, result)
                self._end(key, result)

    @contextmanager
    def _halting(self) -> Iterator[None]:
        """Let an exception stop the search, which Ray would take for the trial's own.

        The trials that run then stay so in the study: the next command goes on with them.
        """
        try:
            yield
        except Exception as error:  # raised again by `run_trials`, once Ray has ended its trials
            self.halted = self.halted or error

    def _advance(self, key: TrialKey, result: dict[str, Any]) -> None:
        if result["remark"]:
            log.info(result["remark"])
        self.runs.advance(key, result["epochs"], result["micro_batch"])
        if result["halt"] is not None:
            raise RunError(result["halt"])

    def _end(self, key: TrialKey, result: dict[str, Any]) -> None:
        if result["diverged"]:
            reason = result["error"] or f"the loss of epoch {result['epoch']} is not finite"
            self.runs.end(key, "diverged", reason)
        elif result["error"]:
            self.runs.end(key, "failed", result["error"])
        elif result["epoch"] == self.runs.epochs:
            self.runs.end(key, "finished")
        else:
            self.runs.end(key, "pruned", self.runs.stop_reason(key) or "scheduler")

    def after_loss(
        self, trial_id: str, losses: int, said: str, *, with_node: bool = False
    ) -> TrialConfig:
        """The trial config to go on with after a worker was lost for the `losses`th time.

        As it was, where its node was lost too, which says nothing about the trial. Else with
        smaller batches where Ray `said` that memory was short; from the second loss on also where
        it did not, because what the system's own out-of-memory killer ends has no time to say so.
        """
        key = self.keys[trial_id]
        config, what = self.runs.config(key), ""
        short = "out of memory" in said.lower() or "OutOfMemoryError" in said
        if not with_node and (short or losses > 1) and (size := half_batch(config)) is not None:
            self.runs.advance(key, (), size)
            config, what = self.runs.config(key), f" with micro_batch {size}"
        why = ", for lack of memory" if short else ""
        self.losses[trial_id] = losses
        lost = "node" if with_node else "worker"
        log.info(
            f"trial {key.label}: its {lost} was lost{why}; it goes on from its checkpoint{what}"
        )
        return config

    def save(self, checkpoint_path: str) -> None:
        """Ray expects a file; what it would hold is in the study."""
        Path(checkpoint_path).write_text("the Optuna study is the state of this search\n")

    def restore(self, checkpoint_path: str) -> None:
        """Nothing is read back."""


class StudyStopper(tune.Stopper):
    """Stops a running trial at its next report once the recorder wants no more of it."""

    def __init__(self, searcher: StudySearcher) -> None:
        self.searcher = searcher

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, as for the searcher."""
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """True for a trial that must not go on."""
        key = self.searcher.keys.get(trial_id)
        return key is not None and self.searcher.runs.stop_reason(key) is not None

    def stop_all(self) -> bool:
        """Only for a halt: else each trial ends at its own next report, with its epochs kept."""
        return self.searcher.halted is not None


class WorkerFailureCallback(tune.Callback):
    """Lets a trial whose worker died go on with what it had come to, not with what it began as."""

    def __init__(self, searcher: StudySearcher) -> None:
        self.searcher = searcher
        self.with_node: Counter[str] = Counter()

    def on_trial_recover(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Called before the trial gets another worker."""
        said = "" if trial.error_file is None else Path(trial.error_file).read_text()
        last = said.rpartition("Failure #")[2]
        with_node = NODE_LOST in last
        if with_node:
            trial.max_failures += 1  # as often as nodes are lost
            self.with_node[trial.trial_id] += 1
        losses = trial.num_failures - self.with_node[trial.trial_id]
        config = self.searcher.after_loss(trial.trial_id, losses, last, with_node=with_node)
        trial.config = {**trial.config, "config": config}
