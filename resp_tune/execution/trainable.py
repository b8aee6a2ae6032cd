"""A trial as Ray Tune runs it: a shell around `Training` that reports, checkpoints and resumes."""

from __future__ import annotations

import os
import socket
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune

from resp_tune.cluster.node_requirements import NodeRequirements
from resp_tune.cluster.resources import LOGICAL_GPUS
from resp_tune.common.fault_points import fault_point
from resp_tune.common.paths import full_disk, write_atomically
from resp_tune.config import TrialConfig
from resp_tune.errors import RespTuneError, RunError
from resp_tune.execution.trial_artifacts import Sender, TrialArtifacts
from resp_tune.execution.watchdog import TrialWatchdog
from resp_tune.storage.object_store import ObjectPath
from resp_tune.training.memory import is_out_of_memory, keep_freed_memory, release_memory
from resp_tune.training.metrics import METRICS

if TYPE_CHECKING:
    from resp_tune.training.datamodule import FeatureCaches, FoldTables
    from resp_tune.training.loop import EpochResult, Training, TrainingData

REPORT_SECONDS = 1.0  # at most one report in this time, or short epochs would flood the driver
CHECKPOINT_SECONDS = 8.0  # what a killed trial may have to repeat, where epochs are shorter
SMALLEST_MICRO_BATCH = 2  # batch statistics of one item say nothing


class TrialTimeoutError(Exception):
    """A trial has had its time."""


@dataclass(frozen=True)
class TrialContext:
    """What every trial of a search shares. Crosses to the workers once, by Ray's object store."""

    folds: Sequence[FoldTables]
    caches: FeatureCaches
    trials_folder: Path
    metric: str
    milestones: tuple[int, ...]  # epochs at which the scheduler must see a result of its own
    threads: int
    gpus: float  # that each trial was given
    timeout: float | None = None  # seconds of one attempt at a trial
    study: str | None = None  # that the trials are of
    remote: ObjectPath | None = None  # what the folder is a copy of, on each node its own
    membership: NodeRequirements | None = (
        None  # of the nodes of a cluster, which may join at any time
    )

    @property
    def trials(self) -> TrialArtifacts:
        """Where the trials keep their files."""
        return TrialArtifacts(self.trials_folder, self.remote)


class TrialTrainable(tune.Trainable):
    """Runs the epochs of one trial config after another.

    A result carries `epoch`, `epochs` (the rows since the last report), `best_so_far` (what rungs
    compare), `diverged`, `error`, `micro_batch` (what the trial went on with where memory was
    short), and a `remark` for the person at the terminal. An exception of the training ends the
    trial with `error` and leaves the actor usable; only a dead worker is Ray's to retry. What is
    not the trial's fault and would hit the next one too (a full disk, a recording that changed)
    comes as `halt`: the search must stop, and the trial has not ended.
    """

    def setup(self, config: dict[str, Any], work: TrialContext) -> None:  # type: ignore[override]  # with_parameters gives `work`
        """Called once an actor; imports torch here, where it is needed."""
        keep_freed_memory()
        self.work = work
        self.stranger = work.membership and work.membership.lacking()
        self.sender = Sender(work.trials)
        self.watch: TrialWatchdog | None = None
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial in the same process, which has torch and the frames at hand."""
        fault_point("worker-reused")
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        self.folder: Path = self.work.trials.here / config["key"].folder
        self.trial_config: TrialConfig = config["config"]
        self.sent: int = config["epochs_reported"]
        self.training: Training | None = None
        self.remark: str | None = None
        self.micro_batch: int | None = None
        self.trace = ""
        self._stop_watch()
        self.attempt: str = config["attempt"]

    def _stop_watch(self) -> None:
        if self.watch is not None:
            self.watch.stop()
            self.watch = None

    def step(self) -> dict[str, Any]:
        """Run epochs until a report is due."""
        try:
            if self.watch is None:
                self.watch = TrialWatchdog(self.folder, self.attempt, self.work.timeout)
            error, out_of_memory = self._try_epochs()
            while out_of_memory and self._halve_micro_batch():
                error, out_of_memory = self._try_epochs()
            if error is not None:
                self._write_traceback()
        except Exception as cause:
            if not _halting(cause):
                raise
            halt = f"trial {self.folder.name}: {cause}"
            return self._report(None, out_of_memory=False, halt=halt)
        result = self._report(error, out_of_memory=out_of_memory)
        if result["done"]:
            self._stop_watch()
            self.sender.finish()
        return result

    def _try_epochs(self) -> tuple[str | None, bool]:
        """The error that ended the epochs, if any, and whether it was for lack of memory."""
        try:
            self._run_epochs()
        except Exception as cause:  # whatever a config brings about belongs to its trial alone
            if _halting(cause):
                raise
            self.trace = traceback.format_exc()
            return " ".join(f"{type(cause).__name__}: {cause}".split()), is_out_of_memory(cause)
        return None, False

    def _halve_micro_batch(self) -> bool:
        """Go on from the last checkpoint with half as many items at once; False at the smallest.

        Gradients add up over micro-batches, so the batch stays as large as it was. What does not
        even start has no batch yet that could be smaller.
        """
        if self.training is None:
            return False
        size = half_batch(self.trial_config, max(len(fold.train.label) for fold in self.work.folds))
        if size is None:
            return False
        self.trial_config = self.trial_config.replace({"micro_batch": size})
        self.micro_batch = size
        self.remark = f"{self.folder.name}: out of memory, goes on with micro_batch {size}"
        self.training = None  # its memory has to be free before it starts again
        release_memory()
        return True

    def _run_epochs(self) -> None:
        if self.stranger:
            raise RunError(self.stranger)
        if self.watch is not None and self.watch.ended_before:
            raise TrialTimeoutError(str(self.watch))
        if self.training is None:
            self.training = self._resume_or_start()
        training, started = self.training, time.monotonic()
        while not training.done:
            if self.watch is not None and self.watch.over:
                raise TrialTimeoutError(str(self.watch))
            trial = str(self.folder.relative_to(self.work.trials.here))
            fault_point("epoch", trial, len(training.history) + 1)
            training.run_epoch()
            unsaved = time.monotonic() - self.checkpointed + training.history[-1].seconds
            due = training.done or unsaved > CHECKPOINT_SECONDS
            if fault_point("checkpoint-due", trial) or due:
                self._write_checkpoint(training)
            fault_point("epoch-done", trial, len(training.history))
            now_due = time.monotonic() - started > REPORT_SECONDS
            if now_due or len(training.history) in self.work.milestones:
                break
        if training.done and training.history[-1].finite:
            self._write_predictions(training)

    def _report(
        self, error: str | None, *, out_of_memory: bool, halt: str | None = None
    ) -> dict[str, Any]:
        history = self.training.history if self.training is not None else []
        rows = [e.row() for e in history]
        fresh, self.sent = rows[self.sent :], max(self.sent, len(rows))
        last = history[-1] if history else None
        diverged = out_of_memory or (last is not None and not last.finite)
        remark, self.remark = self.remark, None
        return {
            "epoch": len(history),
            "epochs": fresh,
            "best_so_far": best_so_far(history, self.work.metric),
            "diverged": diverged,
            "error": error,
            "halt": halt,
            "micro_batch": self.micro_batch,
            "remark": remark,
            "done": error is not None or (self.training is not None and self.training.done),
        }

    def _resume_or_start(self) -> Training:
        training, damage = begin_or_resume(self.work, self.trial_config, self.folder)
        if damage is not None:
            self.remark = damage
        self.checkpointed = time.monotonic()
        return training

    def _write_checkpoint(self, training: Training) -> None:
        from resp_tune.training.checkpoint import CHECKPOINT, save_checkpoint

        with _storage_in_one_line(self.folder):
            save_checkpoint(self.folder / CHECKPOINT, training, self.work.study)
        self.checkpointed = time.monotonic()
        self.sender.send(self.folder / CHECKPOINT)

    def _write_predictions(self, training: Training) -> None:
        """What each fold's network says of its own validation side, as its last score saw it."""
        import pandas as pd

        from resp_tune.training.datamodule import prediction_table

        found = zip(self.work.folds, training.predict_validation(), strict=True)
        frame = pd.concat(
            [prediction_table("validation", f.validation, f.classes, p) for f, p in found],
            ignore_index=True,
        )
        text = frame.to_csv(index=False, lineterminator="\n", float_format="%.9g")
        with _storage_in_one_line(self.folder):
            write_atomically(self.folder / "predictions.csv", text.encode())
        self.sender.send(self.folder / "predictions.csv")

    def _write_traceback(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "error.txt").write_text(self.trace)
        self.sender.send(self.folder / "error.txt")

    def cleanup(self) -> None:
        """Called when the actor ends, also in the middle of a trial that the scheduler stopped."""
        self._stop_watch()
        self.sender.finish()

    # Ray's own checkpoints are not used: a trial is found again by its number, whatever became of
    # the Ray session that started it. Ray asks for these two when it pauses a trial.
    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Write our own checkpoint; Ray's copy only says that there is one."""
        if self.training is not None:
            self._write_checkpoint(self.training)
        return {"folder": str(self.folder)}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Nothing to do: `_resume_or_start` reads our own checkpoint."""


def half_batch(config: TrialConfig, clips: int | None = None) -> int | None:
    """Half as many items as `config` takes at once of `clips`; None below the smallest."""
    size = config.micro_batch or config.batch_size
    half = min(size, clips or size) // 2
    return half if half >= SMALLEST_MICRO_BATCH else None


@contextmanager
def _storage_in_one_line(folder: Path) -> Iterator[None]:
    """Inside, a file that cannot be written is a `RunError`: a lost share hits every trial."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"'{error.filename or folder}' cannot be written on {socket.gethostname()} "
            f"({error.strerror}): let it see the storage, then type the same command again: it "
            "goes on"
        ) from error


def _halting(cause: Exception) -> bool:
    """Whether the next trial would meet the same, so that the search must stop."""
    return isinstance(cause, RespTuneError) or full_disk(cause)


def begin_training(work: TrialContext, config: TrialConfig) -> Training:
    """The training of `config` in this process, from nothing."""
    from resp_tune.training.loop import Training

    folds, device = _settle(work, config)
    return Training(config, folds, device)


def begin_or_resume(
    work: TrialContext, config: TrialConfig, folder: Path
) -> tuple[Training, str | None]:
    """The training as the checkpoint in `folder` left it, and a line where that cannot be used."""
    from resp_tune.training.checkpoint import CHECKPOINT, resume

    path = folder / CHECKPOINT
    trial = folder.relative_to(work.trials.here)
    away = work.trials.newest_checkpoint(trial, config, work.study)
    training, damage = resume(config, *_settle(work, config), path, work.study)
    if damage:
        return training, f"'{path}' {damage}: the trial starts over"
    if away:
        at = len(training.history)
        return training, (
            f"trial {trial}: the storage cannot be asked for its checkpoint ({away}): it goes on "
            f"from epoch {at}, which this machine has"
        )
    return training, None


def _settle(work: TrialContext, config: TrialConfig) -> tuple[list[TrainingData], str]:
    """The folds of `config` and the device, once this process has the trial's threads."""
    import torch

    torch.set_num_threads(work.threads)
    frames = work.caches.frames(config.front_end, workers=work.threads)
    return [fold.tensors(frames, config.front_end) for fold in work.folds], _device(work)


def _device(work: TrialContext) -> str:
    import torch

    from resp_tune.training.memory import limit_gpu_memory

    if not work.gpus or os.environ.get(LOGICAL_GPUS) == "1":
        return "cpu"
    if not torch.cuda.is_available():
        raise RuntimeError(
            "this trial was promised a GPU and torch finds none: check the driver, or give "
            f"--gpus 0 (rehearsals without a GPU: {LOGICAL_GPUS}=1)"
        )
    limit_gpu_memory("cuda", work.gpus)
    return "cuda"


def best_so_far(history: Sequence[EpochResult], metric: str) -> float:
    """The best value of `metric` up to now, its worst finite value before the first epoch."""
    worst, mode = METRICS[metric].worst, METRICS[metric].mode
    values = [e.metrics.get(metric, worst) for e in history if e.finite]
    best = max if mode == "max" else min
    return best(values, default=worst)
