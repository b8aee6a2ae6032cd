"""A trial as Ray Tune runs it: train epochs, report them, save and load checkpoints."""

from __future__ import annotations

import socket
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune

from resp_tune.common.fault_points import fault_point
from resp_tune.common.paths import full_disk, write_atomically
from resp_tune.common.trial_key import TrialKey
from resp_tune.config import TrialConfig
from resp_tune.errors import RespTuneError, RunError
from resp_tune.execution.trial_context import TrialContext
from resp_tune.execution.watchdog import TrialWatchdog
from resp_tune.storage.uploader import Uploader
from resp_tune.training.memory import is_out_of_memory, keep_freed_memory, release_memory

if TYPE_CHECKING:
    from resp_tune.training.loop import Training

REPORT_SECONDS = 1.0  # at most one report in this time, or short epochs would flood the driver
CHECKPOINT_SECONDS = 8.0  # what a killed trial may have to repeat, where epochs are shorter
UPLOAD_SECONDS = 20.0  # that a trial waits at its end; in an outage, for one attempt only
SMALLEST_MICRO_BATCH = 2  # batch statistics of one item say nothing


class TrialTimeoutError(Exception):
    """The trial exceeded --trial-timeout."""


class TrialTrainable(tune.Trainable):
    """Run the epochs of one trial after another, in a worker process.

    A result holds `epoch`, `epochs` (the rows since the last result of this attempt), `diverged`,
    `error`, `micro_batch` (if memory was short), `trained_for` (seconds since this attempt's first
    epoch began, None before), and a `message` for the terminal. An exception of
    the training ends the trial with `error` and leaves the worker usable; only a dead worker is
    Ray's to retry. What is not the trial's fault and would hit the next one too (a full disk, a
    changed recording) is a `fatal_error`: the search must stop, and the trial has not ended.

    Ray's own checkpoints are not used: a trial is found again by its number, whatever became of the
    Ray session that started it. Ray would ask for one only when its scheduler pauses a trial.
    """

    def setup(self, config: dict[str, Any], context: TrialContext) -> None:  # type: ignore[override]  # with_parameters gives `context`
        """Prepare a new worker; called once, and imports torch."""
        keep_freed_memory()
        self.context = context
        self.node_problem = context.requirements and context.requirements.violation()
        self.uploader = Uploader(context.artifacts.remote) if context.artifacts.remote else None
        self.watchdog: TrialWatchdog | None = None
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial in the same process, which has torch and the frames in memory."""
        fault_point("worker-reused")
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        self.key: TrialKey = config["key"]
        self.folder: Path = self.context.artifacts.local_folder / self.key.folder
        self.trial_config: TrialConfig = config["config"]
        self.attempt: str = config["attempt"]
        self.reported = 0  # epochs, by this attempt; the driver drops those it knows already
        self.training: Training | None = None
        self.message: str | None = None
        self.micro_batch: int | None = None
        self.trace = ""
        self.training_began: float | None = None  # of the monotonic clock
        self._stop_watchdog()

    def _stop_watchdog(self) -> None:
        if self.watchdog is not None:
            self.watchdog.stop()
            self.watchdog = None

    def step(self) -> dict[str, Any]:
        """Run epochs until a report is due, and return it."""
        try:
            if self.watchdog is None:
                self.watchdog = TrialWatchdog(self.folder, self.attempt, self.context.timeout)
            error, out_of_memory = self._try_epochs()
            while out_of_memory and self._halve_micro_batch():
                error, out_of_memory = self._try_epochs()
            if error is not None:
                self.folder.mkdir(parents=True, exist_ok=True)
                (self.folder / "error.txt").write_text(self.trace)
                self._upload(self.folder / "error.txt")
        except Exception as cause:
            if not _is_fatal(cause):
                raise
            return self._report(fatal_error=f"trial {self.key.label}: {cause}")
        result = self._report(error, out_of_memory=out_of_memory)
        if result["done"]:
            self.cleanup()
        return result

    def _try_epochs(self) -> tuple[str | None, bool]:
        """Run epochs; return the error that ended them, and whether memory was short."""
        try:
            self._run_epochs()
        except Exception as cause:  # whatever a config causes belongs to its trial alone
            if _is_fatal(cause):
                raise
            self.trace = traceback.format_exc()
            return " ".join(f"{type(cause).__name__}: {cause}".split()), is_out_of_memory(cause)
        return None, False

    def _halve_micro_batch(self) -> bool:
        """Return to the last checkpoint with half the micro-batch; False if it is the smallest.

        Gradients add up over micro-batches, so the batch stays as large as it was. A training that
        did not even start has no batch yet that could be smaller.
        """
        if self.training is None:
            return False
        largest = max(len(fold.train.label) for fold in self.context.folds_of(self.key))
        size = half_batch(self.trial_config, largest)
        if size is None:
            return False
        self.trial_config = self.trial_config.replace({"micro_batch": size})
        self.micro_batch = size
        self.message = f"trial {self.key.label}: out of memory, continues with micro_batch {size}"
        self.training = None  # its memory has to be free before it starts again
        release_memory()
        return True

    def _run_epochs(self) -> None:
        if self.node_problem:
            raise RunError(self.node_problem)
        if self.watchdog is not None and self.watchdog.expired_before:
            raise TrialTimeoutError(str(self.watchdog))
        if self.training is None:
            self.training = self._resume_training()
            self.saved_at = time.monotonic()
        training, started, subject = self.training, time.monotonic(), str(self.key.folder)
        while not training.done:
            if self.watchdog is not None and self.watchdog.expired:
                raise TrialTimeoutError(str(self.watchdog))
            fault_point("epoch", subject, len(training.history) + 1)
            self.training_began = self.training_began or time.monotonic()
            training.run_epoch()
            unsaved = time.monotonic() - self.saved_at + training.history[-1].seconds
            due = training.done or unsaved > CHECKPOINT_SECONDS
            if fault_point("checkpoint-due", subject) or due:
                self._write_checkpoint(training)
            fault_point("epoch-done", subject, len(training.history))
            report_due = time.monotonic() - started > REPORT_SECONDS
            if report_due or len(training.history) in self.context.rungs:
                break
        if training.done and training.history[-1].finite:
            self._write_predictions(training)

    def _resume_training(self) -> Training:
        """Return the training as the trial's checkpoint left it, or a new one.

        Notes as the message if the checkpoint is damaged or the storage does not answer.
        """
        from resp_tune.training.loop import CHECKPOINT, resume

        study, path = self.context.study, self.folder / CHECKPOINT
        training = start_training(self.context, self.trial_config, self.key)
        outage = self.context.artifacts.fetch_newer_checkpoint(self.key.folder, training, study)
        if damage := resume(training, path, study):
            self.message = f"'{path}' {damage}: the trial restarts from its first epoch"
        elif outage:
            self.message = (
                f"trial {self.key.label}: the storage does not answer ({outage}): it resumes from "
                f"epoch {len(training.history)}, whose checkpoint is on this machine"
            )
        return training

    def _report(
        self,
        error: str | None = None,
        *,
        out_of_memory: bool = False,
        fatal_error: str | None = None,
    ) -> dict[str, Any]:
        history = self.training.history if self.training is not None else []
        unreported = [epoch.row() for epoch in history[self.reported :]]
        self.reported = max(self.reported, len(history))
        diverged = out_of_memory or (bool(history) and not history[-1].finite)
        message, self.message = self.message, None
        return {
            "epoch": len(history),
            "epochs": unreported,
            "diverged": diverged,
            "error": error,
            "fatal_error": fatal_error,
            "micro_batch": self.micro_batch,
            "message": message,
            "trained_for": self.training_began and time.monotonic() - self.training_began,
            "done": error is not None or (self.training is not None and self.training.done),
        }

    def _write_checkpoint(self, training: Training) -> None:
        from resp_tune.training.loop import CHECKPOINT, save_checkpoint

        with _unwritable_is_fatal(self.folder):
            save_checkpoint(self.folder / CHECKPOINT, training, self.context.study)
        self.saved_at = time.monotonic()
        self._upload(self.folder / CHECKPOINT)

    def _write_predictions(self, training: Training) -> None:
        """Write what each fold's network predicts on its validation split, as last scored."""
        import pandas as pd

        from resp_tune.training.datamodule import prediction_table

        folds = zip(self.context.folds_of(self.key), training.predict_validation(), strict=True)
        table = pd.concat(
            [prediction_table("validation", f.validation, f.classes, p) for f, p in folds],
            ignore_index=True,
        )
        text = table.to_csv(index=False, lineterminator="\n", float_format="%.9g")
        with _unwritable_is_fatal(self.folder):
            write_atomically(self.folder / "predictions.csv", text.encode())
        self._upload(self.folder / "predictions.csv")

    def _upload(self, path: Path) -> None:
        """Queue a file for the object store; never fails, and is tried again with the next one."""
        if self.uploader is not None:
            name = path.relative_to(self.context.artifacts.local_folder).as_posix()
            self.uploader.add(name, path)

    def cleanup(self) -> None:
        """End the trial's watchdog and uploads; Ray also calls it when the worker ends."""
        self._stop_watchdog()
        if self.uploader is not None:
            self.uploader.wait(UPLOAD_SECONDS)


def start_training(
    context: TrialContext, config: TrialConfig, key: TrialKey | None = None
) -> Training:
    """Return a new training of `config`, after setting this process's threads and device.

    It is on the folds of run `key`, by default on the common ones.
    """
    import torch

    from resp_tune.training.loop import Training

    torch.set_num_threads(context.threads)
    tables = context.folds if key is None else context.folds_of(key)
    folds = [fold.load(context.caches, config, workers=context.threads) for fold in tables]
    return Training(config, folds, context.device(), context.fold_order)


def half_batch(config: TrialConfig, clips: int | None = None) -> int | None:
    """Return half the micro-batch of `config` on `clips` clips, or None below the smallest."""
    size = config.micro_batch or config.batch_size
    half = min(size, clips or size) // 2
    return half if half >= SMALLEST_MICRO_BATCH else None


@contextmanager
def _unwritable_is_fatal(folder: Path) -> Iterator[None]:
    """Raise `RunError` if a file cannot be written: a lost share hits every trial."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"'{error.filename or folder}' cannot be written on {socket.gethostname()} "
            f"({error.strerror}): give it access to the storage, then rerun the same command to "
            "resume"
        ) from error


def _is_fatal(cause: Exception) -> bool:
    """Return whether the next trial would fail in the same way, so that the search must stop."""
    return isinstance(cause, RespTuneError) or full_disk(cause)
