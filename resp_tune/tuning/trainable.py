"""A trial as Ray Tune runs it: a shell around `Training` that reports, checkpoints and resumes."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune

from resp_tune.config import FrontEnd, TrialConfig
from resp_tune.learning.memory import keep_freed_memory
from resp_tune.learning.metrics import METRICS

if TYPE_CHECKING:
    from resp_tune.learning.problem import FoldTables
    from resp_tune.learning.training import EpochResult, Training

LOGICAL_GPUS = "RESP_TUNE_LOGICAL_GPUS"
REPORT_SECONDS = 1.0  # at most one report in this time, or short epochs would flood the driver
CHECKPOINT_SECONDS = 8.0  # what a killed trial may have to repeat


@dataclass(frozen=True)
class Work:
    """What every trial of a search shares. Crosses to the workers once, by Ray's object store."""

    folds: Sequence[FoldTables]
    stores: dict[FrontEnd, Path]
    trials_folder: Path
    metric: str
    milestones: tuple[int, ...]  # epochs at which the scheduler must see a result of its own
    threads: int
    wants_gpu: bool


class TrialTrainable(tune.Trainable):
    """Runs the epochs of one trial config after another.

    A result carries `number`, `epoch`, `epochs` (the rows since the last report), `best_so_far`
    (what rungs compare), `diverged`, `error`. An exception of the training ends the trial with
    `error` and leaves the actor usable; only a dead worker is Ray's to retry.
    """

    def setup(self, config: dict[str, Any], work: Work) -> None:  # type: ignore[override]  # with_parameters gives `work`
        """Called once an actor; imports torch here, where it is needed."""
        keep_freed_memory()
        self.work = work
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial in the same process, which has torch and the frames at hand."""
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        self.number: int = config["number"]
        self.trial_config = TrialConfig().replace(config["config"])
        self.sent: int = config["epochs_reported"]
        self.training: Training | None = None
        self.checkpoint_path = self.work.trials_folder / str(self.number) / "checkpoint.pt"

    def step(self) -> dict[str, Any]:
        """Run epochs until a report is due."""
        error, out_of_memory = None, False
        try:
            self._run_epochs()
        except Exception as cause:  # whatever a config brings about belongs to its trial alone
            # By name, since torch is not imported here: of CUDA, and of the host.
            out_of_memory = type(cause).__name__ in ("OutOfMemoryError", "MemoryError")
            error = f"{type(cause).__name__}: {cause}"
            self._write_traceback()
        return self._report(error, out_of_memory=out_of_memory)

    def _run_epochs(self) -> None:
        if self.training is None:
            self.training = self._resume_or_start()
        training, started = self.training, time.monotonic()
        while not training.done:
            training.run_epoch()
            if training.done or time.monotonic() - self.checkpointed > CHECKPOINT_SECONDS:
                self._write_checkpoint(training)
            now_due = time.monotonic() - started > REPORT_SECONDS
            if now_due or len(training.history) in self.work.milestones:
                return

    def _report(self, error: str | None, *, out_of_memory: bool) -> dict[str, Any]:
        history = self.training.history if self.training is not None else []
        rows = [e.row() for e in history]
        fresh, self.sent = rows[self.sent :], max(self.sent, len(rows))
        last = history[-1] if history else None
        diverged = out_of_memory or (last is not None and not last.finite)
        return {
            "number": self.number,
            "epoch": len(history),
            "epochs": fresh,
            "best_so_far": best_so_far(history, self.work.metric),
            "diverged": diverged,
            "error": error,
            "done": error is not None or (self.training is not None and self.training.done),
        }

    def _resume_or_start(self) -> Training:
        import torch

        from resp_tune.features.store import open_store
        from resp_tune.learning.training import Training

        torch.set_num_threads(self.work.threads)
        front_end = self.trial_config.front_end
        frames = open_store(self.work.stores[front_end])
        folds = [fold.tensors(frames, front_end) for fold in self.work.folds]
        training = Training(self.trial_config, folds, self._device())
        self.checkpointed = time.monotonic()
        if self.checkpoint_path.exists():
            training.load_state(
                torch.load(self.checkpoint_path, weights_only=True, map_location="cpu")
            )
        return training

    def _device(self) -> str:
        import torch

        if not self.work.wants_gpu or os.environ.get(LOGICAL_GPUS) == "1":
            return "cpu"
        if not torch.cuda.is_available():
            raise RuntimeError(
                "this trial was promised a GPU and torch finds none: check the driver, or give "
                f"--gpus 0 (rehearsals without a GPU: {LOGICAL_GPUS}=1)"
            )
        return "cuda"

    def _write_checkpoint(self, training: Training) -> None:
        import torch

        self.checkpoint_path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.checkpoint_path.with_suffix(".part")
        with beside.open("wb") as file:
            torch.save(training.state(), file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.checkpoint_path)
        self.checkpointed = time.monotonic()

    def _write_traceback(self) -> None:
        path = self.checkpoint_path.with_name("error.txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(traceback.format_exc())

    # Ray's own checkpoints are not used: a trial is found again by its number, whatever became of
    # the Ray session that started it. Ray asks for these two when it pauses a trial.
    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Write our own checkpoint; Ray's copy only says that there is one."""
        if self.training is not None:
            self._write_checkpoint(self.training)
        return {"number": self.number}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Nothing to do: `_resume_or_start` reads our own checkpoint."""


def best_so_far(history: Sequence[EpochResult], metric: str) -> float:
    """The best value of `metric` up to now, its worst finite value before the first epoch."""
    worst, mode = METRICS[metric].worst, METRICS[metric].mode
    values = [e.metrics.get(metric, worst) for e in history if e.finite]
    best = max if mode == "max" else min
    return best(values, default=worst)
