"""Epochs that wait where a test wants them to, so that it meets a search in a known state.

Each epoch has its checkpoint. A folder that all processes see holds what was done and is allowed.
"""

from __future__ import annotations

from pathlib import Path

from resp_tune.common.paths import write_atomically
from support import faults

_HOOK = """
    import os, time
    from pathlib import Path
    from resp_tune.execution import trainable
    trainable.CHECKPOINT_SECONDS = 0.0
    step = training.Training.run_epoch
    done, allowed = Path(os.environ["EPOCHS_DONE"]), Path(os.environ["EPOCHS_ALLOWED"])
    def must_wait(self):
        of_all, of_each, of_one, one = map(int, allowed.read_text().split())
        own = of_one if self.config.seed == one else of_each
        return len(self.history) >= own or len(done.read_text().splitlines()) >= of_all
    def run_epoch(self):
        while must_wait(self):
            time.sleep(0.1)
        result = step(self)
        with done.open("a") as file:
            file.write(f"{self.config.seed} {len(self.history)}\\n")
        return result
    training.Training.run_epoch = run_epoch
"""
_ALL = 10_000


def gated(folder: Path, **others: str) -> dict[str, str]:
    """The environment of every process whose epochs wait. `others`: see `faults.planted`."""
    (folder / "epochs").touch()
    return {
        **faults.planted(folder, _HOOK, **others),
        "PYTHONPATH": f"{folder}:{Path.cwd()}",
        "EPOCHS_DONE": str(folder / "epochs"),
        "EPOCHS_ALLOWED": str(folder / "allowed"),
    }


def allow(
    folder: Path, *, of_all: int = _ALL, of_each: int = _ALL, of_one: int = _ALL, seed: int = 0
) -> None:
    """So many epochs together, so many of each trial, and so many of the one with `seed`."""
    write_atomically(folder / "allowed", f"{of_all} {of_each} {of_one} {seed}".encode())


def epochs_done(folder: Path) -> list[str]:
    """A line `seed epoch` for each."""
    return (folder / "epochs").read_text().splitlines()
