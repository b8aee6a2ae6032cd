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

from resp_tune.config import TrialConfig
from resp_tune.learning.memory import keep_freed_memory, ran_out
from resp_tune.learning.metrics import METRICS
from resp_tune.paths import write_atomically

if TYPE_CHECKING:
    from resp_tune.learning.problem import FoldTables, Stores
    from resp_tune.learning.training import EpochResult, Training

LOGICAL_GPUS = "RESP_TUNE_LOGICAL_GPUS"
REPORT_SECONDS = 1.0  # at most one report in this time, or short epochs would flood the driver
CHECKPOINT_SECONDS = 8.0  # what a killed trial may have to repeat


@dataclass(frozen=True)
class Work:
    """What every trial of a search shares. Crosses to the workers once, by Ray's object store."""

    folds: Sequence[FoldTables]
    stores: Stores
    trials_folder: Path
    metric: str
    milestones: tuple[int, ...]  # epochs at which the scheduler must see a result of its own
    threads: int
    gpus: float  # that each trial was given


class TrialTrainable(tune.Trainable):
    """Runs the epochs of one trial config after another.

    A result carries `epoch`, `epochs` (the rows since the last report), `best_so_far` (what rungs
    compare), `diverged`, `error`, and a `remark` for the person at the terminal. An exception of
    the training ends the trial with `error` and leaves the actor usable; only a dead worker is
    Ray's to retry.
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
        self.folder: Path = self.work.trials_folder / config["folder"]
        self.trial_config = TrialConfig().replace(config["config"])
        self.sent: int = config["epochs_reported"]
        self.training: Training | None = None
        self.remark: str | None = None

    def step(self) -> dict[str, Any]:
        """Run epochs until a report is due."""
        error, out_of_memory = None, False
        try:
            self._run_epochs()
        except Exception as cause:  # whatever a config brings about belongs to its trial alone
            out_of_memory = ran_out(cause)
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
                break
        if training.done and training.history[-1].finite:
            self._write_predictions(training)

    def _report(self, error: str | None, *, out_of_memory: bool) -> dict[str, Any]:
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
            "remark": remark,
            "done": error is not None or (self.training is not None and self.training.done),
        }

    def _resume_or_start(self) -> Training:
        import torch

        from resp_tune.learning.checkpoint import CHECKPOINT, resume

        torch.set_num_threads(self.work.threads)
        front_end = self.trial_config.front_end
        frames = self.work.stores.frames(front_end, workers=self.work.threads)
        folds = [fold.tensors(frames, front_end) for fold in self.work.folds]
        path = self.folder / CHECKPOINT
        training, damage = resume(self.trial_config, folds, self._device(), path)
        if damage is not None:
            self.remark = f"'{path}' is damaged ({damage}): the trial starts over"
        self.checkpointed = time.monotonic()
        return training

    def _device(self) -> str:
        import torch

        from resp_tune.learning.packing import limit_memory

        if not self.work.gpus or os.environ.get(LOGICAL_GPUS) == "1":
            return "cpu"
        if not torch.cuda.is_available():
            raise RuntimeError(
                "this trial was promised a GPU and torch finds none: check the driver, or give "
                f"--gpus 0 (rehearsals without a GPU: {LOGICAL_GPUS}=1)"
            )
        limit_memory("cuda", self.work.gpus)
        return "cuda"

    def _write_checkpoint(self, training: Training) -> None:
        from resp_tune.learning.checkpoint import CHECKPOINT, save_checkpoint

        save_checkpoint(self.folder / CHECKPOINT, training)
        self.checkpointed = time.monotonic()

    def _write_predictions(self, training: Training) -> None:
        """What each fold's network says of its own validation side, as its last score saw it."""
        import pandas as pd

        from resp_tune.learning.problem import predictions

        found = zip(self.work.folds, training.predict_validation(), strict=True)
        frame = pd.concat(
            [predictions("validation", f.validation, f.classes, p) for f, p in found],
            ignore_index=True,
        )
        text = frame.to_csv(index=False, lineterminator="\n", float_format="%.9g")
        write_atomically(self.folder / "predictions.csv", text.encode())

    def _write_traceback(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "error.txt").write_text(traceback.format_exc())

    # Ray's own checkpoints are not used: a trial is found again by its number, whatever became of
    # the Ray session that started it. Ray asks for these two when it pauses a trial.
    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Write our own checkpoint; Ray's copy only says that there is one."""
        if self.training is not None:
            self._write_checkpoint(self.training)
        return {"folder": str(self.folder)}

    def load_checkpoint(self, checkpoint: dict[str, Any] | None) -> None:
        """Nothing to do: `_resume_or_start` reads our own checkpoint."""


def best_so_far(history: Sequence[EpochResult], metric: str) -> float:
    """The best value of `metric` up to now, its worst finite value before the first epoch."""
    worst, mode = METRICS[metric].worst, METRICS[metric].mode
    values = [e.metrics.get(metric, worst) for e in history if e.finite]
    best = max if mode == "max" else min
    return best(values, default=worst)
