"""Named points at which a test can plant a fault in a running command.

`RESP_TUNE_FAULT=POINT[/SUBJECT][:ACTION][@N]`, several separated by commas, does ACTION at POINT:

    RESP_TUNE_FAULT=trial-ended@2              kill the driver when the second trial has ended
    RESP_TUNE_FAULT=epoch/0:hang@2             hang before the second epoch of trial 0
    RESP_TUNE_FAULT=training-step:out-of-memory@*    at every step

POINT is one of `POINTS`, ACTION one of `ACTIONS`. SUBJECT is the trial's folder (`0`,
`3/replicates/1`); without it every subject counts. N is the epoch at the points of epochs, and
elsewhere counts how often the point was reached (by SUBJECT, if it is given); without N the first
time counts, with `*` every time.

The count is of one process, or, if `RESP_TUNE_FAULT_FOLDER` names a folder, of all processes that
share it. There each pass of a planted point is a line `SECONDS POINT SUBJECT NUMBER` in `journal`,
an epoch that is repeated does not count again, and the action `gate` waits until `gate.json` lets
it pass; a process that has to wait makes the file `waiting-POINT`.

Without the variable, `fault_point` compares one module variable with None and returns. With it,
only this process and those that inherit it are harmed: the actions are a fixed list, none runs
code that the variable names, and none opens a file outside that folder. Whoever can set a
process's environment can end that process anyway.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from resp_tune.errors import UserError, nearest

VARIABLE, FOLDER = "RESP_TUNE_FAULT", "RESP_TUNE_FAULT_FOLDER"
JOURNAL, GATE = "journal", "gate.json"
SLOW_SECONDS = 0.3
_POLL_SECONDS = 0.05
_LEAST_FREE_BYTES = 2e9  # of memory, left to others by `use-memory`

POINTS = {
    # the driver, in the order of a search
    "search-starts": "the arguments are being checked; nothing was written",
    "study-opens": "before the study is opened",
    "study-created": "the study's file has its tables",
    "split-saves": "before split.json is written",
    "mlflow-opened": "the tracking store has its tables",
    "mlflow-search-run": "the search's own MLflow run exists",
    "mlflow-opens": "before the search's MLflow runs are opened",
    "cache-append": "a recording's frames are in the unfinished cache file",
    "cache-finished": "a cache folder is complete",
    "waveform-read": "a recording was decoded for the cache",
    "sanity-checked": "that batch has passed",
    "trial-asked": "the sampler has made a trial, which has no config yet",
    "trial-handed-out": "a trial or replicate is about to go to a worker",
    "trial-advances": "before its new epochs are in the study",
    "trial-ends": "before its end is in the study",
    "trial-ended": "its end is in the study and was reported to all listeners",
    "mlflow-trial-created": "a trial has its MLflow run",
    "mlflow-trial-ended": "a trial's MLflow run has ended",
    "trials-table": "trials.csv is written",
    "bundle-written": "the winner's files are written",
    "test-access": "the test-set access is on record; the test set is not opened",
    "test-scored": "the winner is scored on the test set; the scores are not written",
    "outer-fold-ends": "an outer fold's search is complete, which is not on record yet",
    "outer-fold-ended": "it is on record; the next search has not begun",
    "summary-writes": "before summary.json is written",
    "report-writes": "before report.html is written",
    "mlflow-evaluation": "the evaluation has its MLflow run",
    "model-logged": "the model is in MLflow, without a version",
    "model-registered": "the model has a version",
    # a worker
    "worker-reused": "a worker takes its next trial",
    "epoch": "before an epoch; its number is the epoch's",
    "epoch-done": "after an epoch; its number is the epoch's",
    "training-step": "before a forward pass of a training step",
    "checkpoint-due": "after an epoch; `force` writes a checkpoint whatever the time",
}


class PlantedError(Exception):
    """What the action `raise` raises."""


class _Fault(NamedTuple):
    point: str
    subject: str | None
    action: str
    number: int | None  # None: every time


_SPEC = re.compile(
    r"(?P<point>[a-z-]+)(/(?P<subject>[\w/]+))?(:(?P<action>[a-z-]+))?(@(?P<number>[1-9]\d*|\*))?",
    re.ASCII,
)

_planted: tuple[_Fault, ...] | None = None
_passes: Counter[tuple[str, str | None]] = Counter()
_lock = threading.Lock()


def fault_point(name: str, subject: str = "", number: int | None = None) -> bool:
    """Do what is planted at the point `name`; return whether a planted action forces something."""
    return _planted is not None and _reach(_planted, name, subject, number)


def read_environment() -> None:
    """Plant what `RESP_TUNE_FAULT` names; `UserError` for what it cannot mean."""
    _plant(os.environ.get(VARIABLE))


@contextmanager
def planted(spec: str) -> Iterator[None]:
    """Plant `spec` in this process for the duration of the block."""
    global _planted
    before = _planted
    _plant(spec)
    try:
        yield
    finally:
        _planted = before


def _plant(spec: str | None) -> None:
    global _planted  # one comparison is all that `fault_point` costs without a fault
    _planted = tuple(_parse(text) for text in spec.split(",")) if spec else None
    _passes.clear()


def _parse(text: str) -> _Fault:
    match = _SPEC.fullmatch(text.strip())
    if match is None:
        raise UserError(f"${VARIABLE}: '{text}' is not POINT[/SUBJECT][:ACTION][@N]")
    point, action = match["point"], match["action"] or "kill"
    if point not in POINTS:
        raise UserError(
            f"${VARIABLE}: unknown point '{point}': {nearest(point, POINTS)}; all points: "
            f"{', '.join(POINTS)}"
        )
    if action not in ACTIONS:
        raise UserError(f"${VARIABLE}: unknown action '{action}': one of {', '.join(ACTIONS)}")
    if action == "gate" and not os.environ.get(FOLDER):
        raise UserError(f"${VARIABLE}: '{text}' needs ${FOLDER}")
    number = match["number"] or "1"
    return _Fault(point, match["subject"], action, None if number == "*" else int(number))


def _reach(faults: tuple[_Fault, ...], name: str, subject: str, number: int | None) -> bool:
    here = [f for f in faults if f.point == name and f.subject in (None, subject)]
    if not here:
        return False
    if folder := os.environ.get(FOLDER):
        gated = any(f.action == "gate" for f in here)
        counts = _record_pass(Path(folder), name, subject, number, gated=gated)
    elif number is not None:
        counts = number, number
    else:
        with _lock:
            _passes.update({(name, None), (name, subject)})
            counts = _passes[name, None], _passes[name, subject]
    due = [f for f in here if f.number in (None, counts[f.subject is not None])]
    forced = [ACTIONS[fault.action]() for fault in due]
    return any(forced)


def _record_pass(
    shared: Path, name: str, subject: str, number: int | None, *, gated: bool
) -> tuple[int, int]:
    """Write a line of the journal once the gate is open; return the numbers of this pass.

    They are counted over all subjects and of `subject` alone, or are both `number`; 0 for a pass
    that has been made before, as by a worker that was killed after it.

    `gate.json` is `{"total": T, "each": E, "subjects": {"0": N}}`: it allows T passes of all
    subjects together, and of one subject those up to number E, or N where it is listed.
    """
    while True:
        with (shared / JOURNAL).open("a+") as journal:
            fcntl.flock(journal, fcntl.LOCK_EX)
            journal.seek(0)
            passes = [line.split(" ")[1:] for line in journal.read().splitlines()]
            total = 1 + sum(line[0] == name for line in passes)
            own = number or 1 + sum(line[:2] == [name, subject or "-"] for line in passes)
            if not gated or _is_open(shared / GATE, subject, own, total):
                line = [name, subject or "-", str(own)]
                journal.write(f"{time.time()} {' '.join(line)}\n")
                if number is None:
                    return total, own
                return (0, 0) if line in passes else (number, number)
        (shared / f"waiting-{name}").touch()
        time.sleep(_POLL_SECONDS)


def _is_open(gate: Path, subject: str, own: int, total: int) -> bool:
    try:
        allowed = json.loads(gate.read_text())
    except FileNotFoundError:
        return False
    limit: int = allowed["subjects"].get(subject, allowed["each"])
    return own <= limit and total <= int(allowed["total"])


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)  # until the signal has arrived


def _raise(error: Exception) -> None:
    raise error


def _use_up_memory() -> None:
    import psutil

    blocks = []
    while psutil.virtual_memory().available > _LEAST_FREE_BYTES:
        blocks.append(b"x" * 2**26)
        time.sleep(0.02)
    raise PlantedError(f"{len(blocks)} blocks of 64 MiB were taken, and the process still runs")


ACTIONS: dict[str, Callable[[], bool | None]] = {
    "kill": _kill,  # SIGKILL to this process, as a power cut or the system's memory killer sends
    "raise": lambda: _raise(PlantedError("planted\nin two lines")),
    "out-of-memory": lambda: _raise(MemoryError("planted")),
    "use-memory": _use_up_memory,  # until something ends this process
    "hang": lambda: threading.Event().wait(),  # for ever
    "slow": lambda: time.sleep(SLOW_SECONDS),
    "interrupt": lambda: os.kill(os.getpid(), signal.SIGINT),  # as Ctrl-C does
    "terminate": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "disk-full": lambda: _raise(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))),
    "gate": lambda: None,  # it has waited before
    "note": lambda: None,  # only the line in the journal
    "force": lambda: True,
}

# A worker has the variable of the driver, which has checked it.
with suppress(UserError):
    read_environment()
