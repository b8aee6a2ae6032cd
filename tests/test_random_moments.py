"""Kills and interruptions at moments that are drawn at random, until a search has finished.

With Ray, on the real recordings where there are some: `RESP_TUNE_THOROUGH=1` does each kind ten
times, else one of them once. In one process, on synthetic recordings: six at each run.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import time
import uuid
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from optuna.trial import TrialState
from support.counted import check_counted_once, ended_runs
from support.fault_log import THOROUGH, survived
from support.inline import search_inline, start_inline
from support.searches import MARK, marked, start, study, wait_for

TRIALS, EPOCHS = (6, 12) if THOROUGH else (4, 4)
ARGS = (
    "--space", "search_spaces/smoke.yaml", "--gpus", "0", "--scheduler", "none",
    "--concurrency", "2", "--epochs", str(EPOCHS), "--trials", str(TRIALS),
    "--replicates", "2", "--name", "random",
)  # fmt: skip
EARLIEST, LONGEST = (
    2.0,
    40.0 if THOROUGH else 24.0,
)  # seconds after its start; before, Python itself is not ready
TO_NOTICE = 60.0  # seconds in which Ray's processes find that their driver was killed

INTERRUPTED, KILLED = 130, -signal.SIGKILL
ACTS = {  # what is done, to whom, and the exit code of it
    "SIGINT at a random moment": (signal.SIGINT, "group", INTERRUPTED),  # as a terminal does
    "SIGTERM at a random moment": (signal.SIGTERM, "driver", INTERRUPTED),
    "SIGKILL of the driver at a random moment": (signal.SIGKILL, "driver", KILLED),
    "SIGKILL of the driver and all it started at a random moment": (signal.SIGKILL, "all", KILLED),
}


class Hit:
    """A command of a search that is ended from outside."""

    def __init__(self, storage: Path, args: tuple[str, ...]) -> None:
        self.err, self.mark = storage.with_suffix(".err"), uuid.uuid4().hex
        given = ("--storage", str(storage), *args)
        self.process = start("search", *given, env={MARK: self.mark}, err=self.err)

    def ends_within(self, seconds: float) -> bool:
        """Waits so long, or until it has ended by itself."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        return self.process.poll() is not None

    def kill_a_worker(self) -> bool:
        """Whether there was one."""
        workers = [p for p in marked(self.mark) if "TrialTrainable" in " ".join(p.cmdline())]
        for worker in workers[:1]:
            worker.kill()
        return bool(workers)

    def send(self, number: signal.Signals, whom: str) -> None:
        if whom == "group":
            os.killpg(self.process.pid, number)
        elif whom == "driver":
            os.kill(self.process.pid, number)
        else:
            for process in marked(self.mark):
                process.send_signal(number)


def ended_trials(storage: Path) -> dict[int, float | None]:
    """Values of the finished trials by number; none before there is a study."""
    if not (storage / "random" / "split.json").exists():
        return {}
    told = study(storage, "random").get_trials()
    return {t.number: t.value for t in told if t.state == TrialState.COMPLETE}


@pytest.mark.thorough
@pytest.mark.timeout(7200)
def test_at_random_moments(tmp_path: Path) -> None:
    seed = secrets.randbelow(10**6)
    print(f"seed {seed}")  # pytest shows it when something has failed
    chance = np.random.default_rng(seed)
    data = os.environ.get("RESP_TUNE_TEST_DATA")
    args = (*ARGS, "--data", data) if data else ARGS
    left = [*ACTS] * 10
    chance.shuffle(left)
    left = left if THOROUGH else left[:1]
    marks: list[str] = []
    while left:
        storage = tmp_path / f"results{len(marks)}"
        finished = False
        while not finished:
            before = ended_trials(storage)
            running = Hit(storage, args)
            marks.append(running.mark)
            finished = not left or not is_hit(running, left, chance)
            assert before.items() <= ended_trials(storage).items()
        assert running.process.wait(timeout=600) == 0, running.err.read_text()
        check_counted_once(storage, "random", TRIALS, EPOCHS)
    wait_for(lambda: not any(marked(mark) for mark in marks), TO_NOTICE)


def is_hit(running: Hit, left: list[str], chance: np.random.Generator) -> bool:
    """Whether the last of `left` was done to the command, and taken off, before it had ended."""
    if running.ends_within(chance.uniform(EARLIEST, LONGEST / 2)):
        return False
    lost = running.kill_a_worker()
    if running.ends_within(chance.uniform(0, LONGEST / 2)):
        return False
    act = left[-1]
    number, whom, code = ACTS[act]
    told_at = time.monotonic()
    running.send(number, whom)
    found = running.process.wait(timeout=90)
    ended = time.monotonic() - told_at
    said = running.err.read_text()
    assert "Traceback" not in said
    if found == 0:  # it ended by itself in that moment
        return False
    assert found == code, f"{act}: {said}"
    if code == INTERRUPTED:
        assert marked(running.mark) == [], act
    left.pop()
    survived(act, ended if code == INTERRUPTED else None)
    if lost:
        survived("SIGKILL of a trial's worker at a random moment")
    return True


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_at_random_moments_in_one_process(tmp_path: Path) -> None:
    seed = secrets.randbelow(10**6)
    print(f"seed {seed}")
    chance = np.random.default_rng(seed)
    args = (*ARGS[: ARGS.index("--epochs")], "--epochs", "2", "--trials", "4", *ARGS[-4:])
    longest = 5.0  # seconds of a whole search
    left = [signal.SIGKILL, signal.SIGINT, signal.SIGTERM] * (10 if THOROUGH else 1)
    number = 0
    while left:
        storage = tmp_path / f"results{(number := number + 1)}"
        finished = False
        while not finished:
            before = ended_runs(storage, "random")
            begun = time.monotonic()
            finished = not left or not interrupted_inline(storage, args, left, chance, longest)
            if finished and left:
                longest = time.monotonic() - begun
            assert before.items() <= ended_runs(storage, "random").items()
        outcome = search_inline(storage, *args)
        assert outcome.code == 0, outcome.err
        check_counted_once(storage, "random", 4, 2)


def interrupted_inline(
    storage: Path,
    args: tuple[str, ...],
    left: list[signal.Signals],
    chance: np.random.Generator,
    longest: float,
) -> bool:
    """Send the last signal of `left`, and take it off, unless the search ends before."""
    err = storage.with_suffix(".err")
    running = start_inline(storage, *args, err=err)
    wait_for(lambda: err.exists() and err.read_text() != "")  # from now on it handles signals
    with suppress(subprocess.TimeoutExpired):
        running.wait(chance.uniform(0, longest))
        return False
    running.send_signal(left[-1])
    code = running.wait(timeout=90)
    assert "Traceback" not in err.read_text()
    if code == 0:
        return False
    assert code == (KILLED if left[-1] == signal.SIGKILL else INTERRUPTED), err.read_text()
    survived(f"{left.pop().name} of a search in one process, at a random moment")
    return True
