"""Connect Ray Tune to the queue of runs: which run comes next, and how each one ended."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.search import Searcher

from resp_tune.common.timeline import add_first_step, add_span
from resp_tune.common.trial_key import TrialKey
from resp_tune.config import TrialConfig
from resp_tune.errors import RunError
from resp_tune.execution.trainable import half_batch
from resp_tune.study.trial_queue import TrialQueue

log = logging.getLogger(__name__)

WORKER_RETRIES = 3  # a trial whose worker dies more often than this has failed
SLOT = "slot "  # before the number of a track of the timeline, which has one trial at a time
NODE_LOST = "node has died"  # in Ray's message about the worker


class RestartTrialsError(RunError):
    """Raised to run Ray Tune again on what the study holds.

    Ray counts the loss of a worker twice if the worker died between two trials, and takes the next
    trial for failed at its first loss.
    """


class _TrialSpans:
    """The spans of running trials, by Ray's id; each is on the first track that is free."""

    def __init__(self) -> None:
        self._running: dict[str, tuple[int, float, float | None]] = {}

    def begin(self, trial_id: str) -> None:
        """Note that a trial is handed out."""
        taken = {slot for slot, _, _ in self._running.values()}
        free = next(slot for slot in count(1) if slot not in taken)
        self._running[trial_id] = (free, time.monotonic(), None)

    def advance(self, trial_id: str, result: Mapping[str, Any]) -> None:
        """Note when a trial began to train, which its result tells for any machine's clock."""
        slot, begin, first_step = self._running[trial_id]
        if first_step is None and result.get("trained_for") is not None:
            first_step = max(begin, time.monotonic() - result["trained_for"])
            self._running[trial_id] = slot, begin, first_step
            add_first_step(first_step)

    def end(self, trial_id: str, label: str, result: Mapping[str, Any]) -> None:
        """Record a trial that has ended with `result`, and within it its training."""
        self.advance(trial_id, result)
        slot, begin, first_step = self._running.pop(trial_id)
        now = time.monotonic()
        add_span(f"trial {label}", begin, now, f"{SLOT}{slot}")
        if first_step is not None:
            add_span("training", first_step, now, f"{SLOT}{slot}")


class StudySearcher(Searcher):
    """A Ray Tune searcher that takes its trials from a queue.

    The queue's study is the only state: what Ray saves is not used. `capacity()` returns how many
    trials may run now. `fatal_error` is why the search must stop early; the runs it interrupts
    stay running in the study, and the next command resumes them.
    """

    def __init__(self, queue: TrialQueue, capacity: Callable[[], int]) -> None:
        super().__init__()
        self.queue, self.capacity = queue, capacity
        self.keys: dict[str, TrialKey] = {}  # of the running trials, by Ray's id
        self.worker_losses: dict[str, int] = {}
        self.stop_reasons: dict[TrialKey, str] = {}  # of trials that Ray is told to stop
        self.fatal_error: Exception | None = None
        self._spans = _TrialSpans()

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Ray pickles a copy for `Tuner.restore`, which is never used."""
        return {}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]  # Ray's own FINISHED is a str
        """Return the next run, None while there is no capacity, or `FINISHED` at the end."""
        if len(self.keys) >= self.capacity():
            return None
        run = None
        with self._errors_are_fatal():
            run = self.queue.next_trial()
        if run is None:
            return Searcher.FINISHED
        self.keys[trial_id] = run["key"]
        self._spans.begin(trial_id)
        return run

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Record the new epochs of a trial that continues."""
        with self._errors_are_fatal():
            self._spans.advance(trial_id, result)
            self._record(self.keys[trial_id], result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Record the end of a trial; with `error` or without `result`, Ray has given it up."""
        key = self.keys.pop(trial_id)
        self._spans.end(trial_id, key.label, result or {})
        losses = self.worker_losses.pop(trial_id, 0)
        given_up = error or result is None
        if given_up and losses < WORKER_RETRIES:
            self._stop(
                RestartTrialsError(
                    f"trial {key.label} was assigned to a worker that had just died: the running "
                    "trials restart from their checkpoints"
                )
            )
            return
        with self._errors_are_fatal():
            if result is None or error:
                self.queue.end(key, "failed", f"its worker died {losses + 1} times")
            elif self._record(key, result):
                self._record_end(key, result)

    def _stop(self, error: Exception) -> None:
        """Stop the search; `run_trials` raises the first error, once Ray has ended its trials."""
        self.fatal_error = self.fatal_error or error

    @contextmanager
    def _errors_are_fatal(self) -> Iterator[None]:
        """Stop the search at an exception inside, for which Ray would blame the trial alone."""
        try:
            yield
        except Exception as error:
            self._stop(error)

    def _record(self, key: TrialKey, result: dict[str, Any]) -> bool:
        """Record the epochs of a result; False if it stops the search and the trial has no end."""
        if result["message"]:
            log.info(result["message"])
        self.queue.advance(key, result["epochs"], result["micro_batch"])
        if result["fatal_error"] is not None:
            self._stop(RunError(result["fatal_error"]))
            return False
        return True

    def _record_end(self, key: TrialKey, result: dict[str, Any]) -> None:
        if result["diverged"]:
            reason = result["error"] or f"the loss of epoch {result['epoch']} is not finite"
            self.queue.end(key, "diverged", reason)
        elif result["error"]:
            self.queue.end(key, "failed", result["error"])
        elif result["epoch"] == self.queue.epochs:
            self.queue.end(key, "finished")
        else:
            self.queue.end(key, "pruned", self.stop_reasons.pop(key, None))

    def config_after_loss(
        self, trial_id: str, losses: int, error: str, *, node_lost: bool = False
    ) -> TrialConfig:
        """Return the config that a trial resumes with after the `losses`th loss of its worker.

        It is unchanged if the whole node was lost, which says nothing about the trial. Otherwise
        the micro-batch is halved if Ray's `error` says that memory was short, and from the second
        loss on in any case: the system's own out-of-memory killer leaves no time to say so.
        """
        key = self.keys[trial_id]
        config, change = self.queue.config(key), ""
        short = "out of memory" in error.lower() or "OutOfMemoryError" in error
        if not node_lost and (short or losses > 1) and (size := half_batch(config)) is not None:
            self.queue.advance(key, (), size)
            config, change = self.queue.config(key), f" with micro_batch {size}"
        self.worker_losses[trial_id] = losses
        log.info(
            f"trial {key.label}: its {'node' if node_lost else 'worker'} was lost"
            f"{' (out of memory)' if short else ''}; it resumes from its checkpoint{change}"
        )
        return config

    def save(self, checkpoint_path: str) -> None:
        """Write the file that Ray expects; the state is in the study."""
        Path(checkpoint_path).write_text("the Optuna study is the state of this search\n")


class StudyStopper(tune.Stopper):
    """Stop a running trial at its next report once its queue says so."""

    def __init__(self, searcher: StudySearcher) -> None:
        self.searcher = searcher

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing, like the searcher."""
        return {}

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Return whether a trial must stop."""
        key = self.searcher.keys.get(trial_id)
        if key is None:
            return False
        reason = self.searcher.queue.stop_reason(key, result["epochs"])
        if reason is not None:
            self.searcher.stop_reasons[key] = reason
        return reason is not None

    def stop_all(self) -> bool:
        """Return whether the search has failed; otherwise trials stop at their own reports."""
        return self.searcher.fatal_error is not None


class WorkerFailureCallback(tune.Callback):
    """Resume a trial whose worker died with its current config, which may differ from the first."""

    def __init__(self, searcher: StudySearcher) -> None:
        self.searcher = searcher
        self.node_losses: Counter[str] = Counter()

    def on_trial_recover(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """Update the trial's config before it gets another worker."""
        errors = "" if trial.error_file is None else Path(trial.error_file).read_text()
        last = errors.rpartition("Failure #")[2]
        node_lost = NODE_LOST in last
        if node_lost:
            trial.max_failures += 1  # lost nodes do not count
            self.node_losses[trial.trial_id] += 1
        losses = trial.num_failures - self.node_losses[trial.trial_id]
        config = self.searcher.config_after_loss(trial.trial_id, losses, last, node_lost=node_lost)
        trial.config = {**trial.config, "config": config}
