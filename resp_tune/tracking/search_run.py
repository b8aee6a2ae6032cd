"""Record a search in MLflow: one parent run, with a run for each trial below it.

search = SearchRef("first", "macro_f1", "max")
runs = SearchRuns(uri, storage, search, params={})
runs.trials.start_trial(TrialKey(0), params=config, seed=17)
runs.trials.log_epochs(TrialKey(0), [{"epoch": 1, "train_loss": 1.2, "val_macro_f1": 0.3}])
runs.trials.end_trial(TrialKey(0), "finished", score=0.3, seconds=4.2)
runs.close("FINISHED")

Only the driver writes, and every write is idempotent: the driver may replay its whole study.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resp_tune.common.fault_points import fault_point
from resp_tune.common.retry_queue import RetryQueue
from resp_tune.common.trial_key import TrialKey
from resp_tune.errors import UserError
from resp_tune.tracking.client import connect, experiment_id, is_permanent
from resp_tune.tracking.parent_run import end_search_run, open_search_run, search_runs
from resp_tune.tracking.tags import ParentStatus, SearchRef, Tag, origin
from resp_tune.tracking.trial_runs import RunKey, TrialRuns, metrics_of, now_ms
from resp_tune.tracking.ui_links import save_view
from resp_tune.tracking.uri import redact, root_cause, scrub

log = logging.getLogger(__name__)

CLOSE_SECONDS = 30.0


class SearchRuns:
    """The MLflow runs of one search, written in the background.

    The constructor finds or creates the experiment and the parent run, and raises `UserError` if
    that fails. Afterwards nothing raises, and only `run_ids`, `log_evaluation` and `close` wait for
    the queue, for a limited time. `columns` are the searched parameters: the columns of the saved
    view.
    """

    def __init__(
        self,
        uri: str,
        storage: Path,
        search: SearchRef,
        *,
        params: Mapping[str, Any],
        columns: Sequence[str] = (),
    ) -> None:
        from mlflow.exceptions import MlflowException

        self.search, self._uri = search, uri
        self._client = connect(uri)
        try:
            self.experiment_id = experiment_id(self._client, uri, storage)
            known = list(search_runs(self._client, self.experiment_id, search))
            parent = open_search_run(self._client, self.experiment_id, search, known, params)
            save_view(self._client, self.experiment_id, search, columns)
        except MlflowException as error:
            raise UserError(
                f"the MLflow store '{redact(uri)}' cannot be written to "
                f"({root_cause(error, uri)}): give another --tracking-uri"
            ) from None
        self.parent_run_id = parent.info.run_id
        self._best = parent.data.metrics.get(f"best_{search.metric}")
        self._best_step = -1
        if self._best is not None:
            history = self._client.get_metric_history(self.parent_run_id, "best_trial")
            self._best_step = max((point.step for point in history), default=-1)
        self._refusals: list[str] = []
        self._patient = True
        self._queue = RetryQueue(
            "mlflow-writer",
            ordered=True,
            on_outage=self._warn_of_outage,
            on_recovery=lambda n: log.info(f"MLflow is back: writing the {n} entries that waited"),
            is_permanent=is_permanent,
            on_refusal=self._warn_of_refusal,
        )
        self.trials = TrialRuns(
            self._client,
            self.experiment_id,
            search.metric,
            {**search.tags, Tag.PARENT: self.parent_run_id},
            [run for run in known if run.data.tags.get(Tag.PARENT) == self.parent_run_id],
            self._queue,
        )

    def _warn_of_outage(self, error: Exception) -> None:
        log.warning(
            f"MLflow at '{redact(self._uri)}' cannot be written to ({self._reason(error)}): the "
            "search continues, and its entries are written when MLflow is back"
        )

    def _warn_of_refusal(self, what: str, error: Exception) -> None:
        self._refusals.append(self._reason(error))
        log.warning(f"MLflow refused the {what}: {self._refusals[-1]}")

    @property
    def failure(self) -> str:
        """Return why an entry is not in MLflow: an outage, a refusal, or slowness."""
        if (error := self._queue.failure) is not None:
            return self._reason(error)
        return self._refusals[-1] if self._refusals else "it is slow"

    def _flush(self, seconds: float) -> int:
        """Wait for the queue, in an outage `seconds` once and later only for another attempt."""
        waiting = self._queue.flush(seconds, until_failure=not self._patient)
        self._patient = not waiting
        return waiting

    def _reason(self, error: Exception) -> str:
        if not is_permanent(error):
            return root_cause(error, self._uri)
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return scrub(lines[0], self._uri)[:300]

    def log_best(self, score: float, number: int) -> None:
        """Log the best score so far and its trial at the parent run; a lower score is ignored."""
        now = now_ms()
        self._queue.put("best score", lambda: self._write_best(score, number, now))

    def _write_best(self, score: float, number: int, now: int) -> None:
        sign = 1 if self.search.mode == "max" else -1
        if self._best is not None and sign * score <= sign * self._best:
            return  # a replay logs all of them again
        metric = self.search.metric
        metrics = {metric: score, f"best_{metric}": score, "best_trial": number}
        # Steps count the ended trials. MLflow shows the value of the highest step and, at one step,
        # of the latest millisecond, which two values may share: so no step is used twice.
        step = max(self.trials.ended(), self._best_step + 1)
        self._client.log_batch(self.parent_run_id, metrics=metrics_of(metrics, step, now))
        self._best, self._best_step = score, step

    def run_ids(self, *, seconds: float = CLOSE_SECONDS) -> dict[TrialKey, str]:
        """Flush the queue, waiting at most `seconds`, and return the run ids of the trials."""
        self._flush(seconds)
        return self.trials.ids()

    def log_evaluation(
        self,
        trial: TrialKey,
        *,
        params: Mapping[str, Any],
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
        seconds: float = CLOSE_SECONDS,
    ) -> str | None:
        """Record an evaluation on the test split; return its run id, or None if that fails.

        `failure` then says why. Only these runs have `test_<metric>`. The same weights
        (`resp_tune.weights_sha256`) keep their run.
        """
        key, now = RunKey("evaluation", trial, tags.get(Tag.WEIGHTS, "")), now_ms()
        all_tags, run_ids = {**origin(), **tags}, list[str]()

        def evaluate() -> None:
            run = self.trials.write_start(key, params, all_tags, now)
            self.trials.write_end(key, "finished", metrics, None, now)
            fault_point("mlflow-evaluation")
            run_ids.append(run.run_id)

        self._queue.put(f"evaluation of trial {trial.label}", evaluate)
        self._flush(seconds)
        return run_ids[0] if run_ids else None

    def close(self, status: ParentStatus, *, seconds: float = CLOSE_SECONDS) -> str | None:
        """End the parent run, and trials that still run as `interrupted`.

        Waits at most `seconds` for the queue. Returns a line on the entries that are not written
        then; the next run of the same command writes them.
        """
        now = now_ms()
        self._queue.put("end of interrupted trials", lambda: self.trials.interrupt(now))
        self._queue.put("end of the search", lambda: self._end_parent(status, now))
        waiting = self._flush(seconds)
        missing, reason = waiting + len(self._refusals), self.failure
        self._queue.close(0.0 if waiting else 5.0)
        if not missing:
            return None
        return (
            f"{missing} entries could not be written to MLflow at '{redact(self._uri)}' "
            f"({reason}), and nothing of the search is lost"
        )

    def _end_parent(self, status: ParentStatus, now: int) -> None:
        end_search_run(self._client, self.parent_run_id, status, now)
