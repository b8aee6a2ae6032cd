"""Trials without training: what is left is the cost of Ray, Optuna and MLflow. Imports no torch."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from ray import tune

TOGETHER = "together"  # in the trials' folder: how many processes begin at the same time
PATIENCE = 900.0  # seconds

METRICS = ("macro_f1", "balanced_accuracy", "mcc", "auroc", "log_loss", "accuracy")


class Instant(tune.Trainable):
    """Reports one epoch a result, at once. Takes the place of `TrialTrainable`.

    Every step adds a line `start end` (seconds of the monotonic clock) to `steps-<pid>` in the
    trials' folder. With a file `TOGETHER` there, no process steps before so many have come.
    """

    epoch_seconds = 0.0

    def setup(self, config: dict[str, Any], context: Any) -> None:  # type: ignore[override]  # with_parameters gives `context`
        """Called once an actor."""
        self.folder = Path(context.artifacts.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.steps = (self.folder / f"steps-{os.getpid()}").open("a", buffering=1)
        self.first = True
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Take the next trial in the same process."""
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        self.number, self.epoch = config["key"].number, 0
        self.epochs = config["config"].epochs

    def step(self) -> dict[str, Any]:
        """One epoch with made-up figures."""
        if self.first:  # by now Ray Tune counts this trial as running
            wait_for_all(self.folder)
            self.first = False
        started = time.monotonic()
        time.sleep(self.epoch_seconds)
        self.epoch += 1
        # Any score between 0 and 1 will do, as long as trials differ.
        score = (self.number * 0.618 + self.epoch * 0.01) % 1.0
        self.steps.write(f"{started} {time.monotonic()}\n")
        row = {
            "epoch": self.epoch,
            "train_loss": 1.0 - score,
            "val_loss": 1.0 - score,
            **{f"val_{name}": score for name in METRICS},
            "lr": 1e-3,
            "seconds": self.epoch_seconds,
        }
        return {
            "number": self.number,
            "epoch": self.epoch,
            "epochs": [row],
            "best_so_far": score,
            "diverged": False,
            "error": None,
            "micro_batch": None,
            "fatal_error": None,
            "message": None,
            "done": self.epoch == self.epochs,
        }


def wait_for_all(folder: Path) -> None:
    """Return once as many processes have come as the file `TOGETHER` in `folder` says, if any.

    Ray Tune gives a trial whose process still starts to one that is free, and ends the one that
    starts. Where trials are shorter than such a start, slots would stay empty for good.
    """
    wanted, patience = folder / TOGETHER, time.monotonic() + PATIENCE
    if not wanted.exists():
        return
    count = int(wanted.read_text())
    while len(list(folder.glob("steps-*"))) < count:
        if time.monotonic() > patience:
            raise RuntimeError(f"after {PATIENCE:.0f} s fewer than {count} processes have come")
        time.sleep(0.2)


class Tenth(Instant):
    """Epochs of 0.1 s."""

    epoch_seconds = 0.1


class Second(Instant):
    """Epochs of 1 s."""

    epoch_seconds = 1.0
