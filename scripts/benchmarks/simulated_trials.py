"""Trials without training, which only cost Ray, Optuna and MLflow time; imports no torch."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from ray import tune

START_TOGETHER = "together"  # file in the trials' folder: the number of processes to wait for
TIMEOUT_SECONDS = 900.0

METRICS = ("macro_f1", "balanced_accuracy", "mcc", "auroc", "log_loss", "accuracy")


class Instant(tune.Trainable):
    """Report one epoch per result, at once; replaces `TrialTrainable`.

    Every step appends a line `start end` (seconds of the monotonic clock) to `steps-<pid>` in the
    trials' folder. If the file `START_TOGETHER` is there, no step runs before as many processes as
    it says have started.
    """

    epoch_seconds = 0.0

    def setup(self, config: dict[str, Any], context: Any) -> None:  # type: ignore[override]  # with_parameters gives `context`
        """Open the step file, once per actor."""
        self.folder = Path(context.artifacts.folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.steps = (self.folder / f"steps-{os.getpid()}").open("a", buffering=1)
        self.first = True
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Start the next trial in the same process."""
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        self.number, self.epoch = config["key"].number, 0
        self.epochs = config["config"].epochs

    def step(self) -> dict[str, Any]:
        """Return the result of one epoch with made-up figures."""
        if self.first:  # by now Ray Tune counts this trial as running
            wait_for_all(self.folder)
            self.first = False
        started = time.monotonic()
        time.sleep(self.epoch_seconds)
        self.epoch += 1
        # Any score between 0 and 1 that differs between trials.
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
            "diverged": False,
            "error": None,
            "micro_batch": None,
            "fatal_error": None,
            "message": None,
            "done": self.epoch == self.epochs,
        }


def wait_for_all(folder: Path) -> None:
    """Wait for as many processes as the file `START_TOGETHER` in `folder` says, if there is one.

    Ray Tune gives a trial whose process is still starting to an idle process and ends the new one.
    If trials are shorter than the start of a process, slots would never be filled. Raise
    `RuntimeError` after `TIMEOUT_SECONDS`.
    """
    wanted, deadline = folder / START_TOGETHER, time.monotonic() + TIMEOUT_SECONDS
    if not wanted.exists():
        return
    count = int(wanted.read_text())
    while len(list(folder.glob("steps-*"))) < count:
        if time.monotonic() > deadline:
            raise RuntimeError(
                f"fewer than {count} processes started within {TIMEOUT_SECONDS:.0f} s"
            )
        time.sleep(0.2)


class Tenth(Instant):
    """Epochs of 0.1 s."""

    epoch_seconds = 0.1


class Second(Instant):
    """Epochs of 1 s."""

    epoch_seconds = 1.0
