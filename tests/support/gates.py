"""Epochs that wait where a test wants them to, so that it meets a search in a known state.

Each epoch has its checkpoint. A folder that all processes see holds what was done and is allowed.
"""

from __future__ import annotations

import json
from pathlib import Path

from resp_tune.common.fault_points import FOLDER, GATE, JOURNAL, VARIABLE
from resp_tune.common.paths import write_atomically

_ALL = 10_000


def gated(folder: Path, *faults: str) -> dict[str, str]:
    """Return the environment of every process whose epochs wait, with more `faults` planted."""
    spec = ["epoch:gate@*", "epoch-done:note@*", "checkpoint-due:force@*", *faults]
    return {VARIABLE: ",".join(spec), FOLDER: str(folder)}


def gate_at(folder: Path, point: str) -> dict[str, str]:
    """Return the environment of a process that waits at `point` until `allow` opens it."""
    return {VARIABLE: f"{point}:gate@*", FOLDER: str(folder)}


def allow(
    folder: Path, *, of_all: int = _ALL, of_each: int = _ALL, of_one: int = _ALL, trial: int = 0
) -> None:
    """Allow so many epochs of all trials together, so many of each, and so many of one `trial`."""
    limits = {str(trial): min(of_one, of_each)}
    content = {"total": of_all, "each": of_each, "subjects": limits}
    write_atomically(folder / GATE, json.dumps(content).encode())


def epochs_done(folder: Path) -> list[str]:
    """Return a line `trial epoch` for each epoch that was done, the trial as its folder."""
    return [" ".join(words[2:]) for words in passes(folder) if words[1] == "epoch-done"]


def passes(folder: Path) -> list[list[str]]:
    """Return `[seconds, point, subject, number]` of each pass of a planted point."""
    journal = folder / JOURNAL
    return [line.split() for line in journal.read_text().splitlines()] if journal.exists() else []


def is_waiting(folder: Path, point: str) -> bool:
    """Return whether a process has come to a closed gate at `point`."""
    return (folder / f"waiting-{point}").exists()
