"""Searches run as a user runs them: the real command in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import psutil

MARK = "RESP_TUNE_TEST_MARK"  # what `marked` looks for


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.strip().splitlines()


def command(module: str, *args: str, env: dict[str, str] | None = None, cwd: Path | None = None,
            timeout: float = 300) -> Outcome:  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", f"resp_tune.{module}", *args],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **(env or {})},
        cwd=cwd,
        timeout=timeout,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def start(
    module: str, *args: str, env: dict[str, str] | None = None, err: Path | None = None
) -> subprocess.Popen[bytes]:
    """The command in a process group of its own, which a test kills as a power cut would.

    `err`: where its stderr goes.
    """
    with err.open("wb") if err else open(os.devnull, "wb") as file:  # noqa: PTH123  # not a path
        return subprocess.Popen(
            [sys.executable, "-m", f"resp_tune.{module}", *args],
            stdout=subprocess.DEVNULL,
            stderr=file,
            start_new_session=True,
            env={**os.environ, **(env or {})},
        )


def marked(mark: str) -> list[psutil.Process]:
    """Every process that was started, at whatever remove, with `mark` in its environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # it has ended, or is somebody else's
    return found


def wait_for(condition: Callable[[], bool], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.2)


def search(storage: Path, *args: str, **options: Any) -> Outcome:
    return command("search", "--storage", str(storage), *args, **options)


def summary(storage: Path, name: str) -> dict[str, Any]:
    return json.loads((storage / name / "summary.json").read_text())


def trials(storage: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(storage / name / "trials.csv")


def study(storage: Path, name: str) -> optuna.Study:
    url = f"sqlite:///{storage / name / 'study.db'}"
    assert [s.study_name for s in optuna.get_all_study_summaries(url)] == [name]
    return optuna.load_study(study_name=name, storage=url)


def files_below(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}
