"""Searches run as a user runs them: the real command in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import psutil

from support.warm import WarmProcess, can_be_warm

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


def command(
    module: str,
    *args: str,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 300,
    cold: bool = False,
) -> Outcome:
    """Run a command to its end, in a fork of a process that has imported the libraries.

    `cold`: in a new Python, which takes 6 s of CPU more.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        running = start(module, *args, env=env, cwd=cwd, out=out, err=err, cold=cold)
        try:
            code = running.wait(timeout)
        finally:
            running.kill()
        return Outcome(code, out.read_text(), err.read_text())


def start(
    module: str,
    *args: str,
    env: dict[str, str] | None = None,
    cwd: Path | None = None,
    out: Path | None = None,
    err: Path | None = None,
    cold: bool = False,
) -> subprocess.Popen[bytes] | WarmProcess:
    """Start a command in a process group of its own, which a test kills as a power cut would.

    `out`, `err`: where its stdout and stderr go. A command whose environment holds `MARK` is cold.
    """
    env = env or {}
    if module == "search" and not cold:
        give_mlflow_store(args, env)
    files = [str(path or os.devnull) for path in (out, err)]
    if not cold and MARK not in env and can_be_warm(env):
        return WarmProcess(module, args, env=env, cwd=cwd, out=files[0], err=files[1])
    with open(files[0], "wb") as stdout, open(files[1], "wb") as stderr:  # noqa: PTH123  # os.devnull
        return subprocess.Popen(
            [sys.executable, "-m", f"resp_tune.{module}", *args],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            env={**os.environ, **env},
            cwd=cwd,
        )


def give_mlflow_store(args: Sequence[str], env: Mapping[str, str]) -> None:
    """Put an empty MLflow store where a search with these arguments would make its own."""
    if {"--storage"} != {"--storage", "--tracking-uri", "--dry-run"}.intersection(args):
        return
    storage = args[args.index("--storage") + 1]
    if "://" not in storage and "MLFLOW_TRACKING_URI" not in {**os.environ, **env}:
        from support.mlflow_stores import with_mlflow_store

        with_mlflow_store(Path(storage))


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
