"""Ctrl-C once and twice, SIGTERM, and a worker that is killed: state kept, no process left."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from support.counted import check_counted_once, ended_runs
from support.fault_log import survived
from support.gates import allow, epochs_done, gated, passes
from support.inline import search_inline
from support.searches import MARK, marked, search, start, study, trials, wait_for

from resp_tune.common.fault_points import FOLDER, VARIABLE

ARGS = (
    "--space", "search_spaces/smoke.yaml", "--gpus", "0", "--scheduler", "none",
    "--concurrency", "2", "--trials", "2", "--name", "cut",
)  # fmt: skip

pytestmark = pytest.mark.slow


def epochs_told(storage: Path) -> int:
    if not (storage / "cut" / "study.db").exists():
        return 0
    return sum(len(t.intermediate_values) for t in study(storage, "cut").get_trials())


def begin(storage: Path, *args: str, err: Path, env: dict[str, str] | None = None) -> Any:
    """Start the search cold; return its process and the mark that its processes are found by."""
    mark = uuid.uuid4().hex
    given = ("--storage", str(storage), *ARGS, *args)
    return start("search", *given, env={MARK: mark, **(env or {})}, err=err), mark


THOROUGH_CASES = [
    pytest.param(name, moment, marks=pytest.mark.thorough)
    for name, moment in [
        ("SIGTERM", "start"),
        ("SIGINT", "start"),
        ("SIGTERM", "ray"),
        ("SIGINT", "trials"),
    ]
]


@pytest.mark.parametrize(
    ("name", "moment"), [("SIGINT", "ray"), ("SIGTERM", "trials"), *THOROUGH_CASES]
)
def test_an_interruption_keeps_everything(name: str, moment: str, tmp_path: Path) -> None:
    storage, err = tmp_path / "r", tmp_path / "err"
    running, mark = begin(storage, "--epochs", "400", err=err)
    if moment == "start":
        wait_for(lambda: (storage / "cut" / "recordings.json").exists())
    elif moment == "ray":  # while it starts
        wait_for(lambda: any(p.name() == "gcs_server" for p in marked(mark)))
    else:
        wait_for(lambda: epochs_told(storage) >= 4)
    # A terminal tells the whole group, `kill` the process.
    told_at = time.monotonic()
    if name == "SIGINT":
        os.killpg(running.pid, signal.SIGINT)
    else:
        os.kill(running.pid, signal.SIGTERM)
    assert running.wait(timeout=90) == 130, err.read_text()
    ended = time.monotonic() - told_at
    assert marked(mark) == []
    said = err.read_text()
    assert "rerun the same command with --name cut to resume" in said
    assert "Traceback" not in said
    again = search(storage, *ARGS, "--epochs", "400", "--time-budget", "1s")
    assert again.code in (0, 1), again.err  # 1: nothing finished within a second
    told = study(storage, "cut").get_trials()
    assert [t.number for t in told] == list(range(len(told)))
    assert TrialState.RUNNING not in {t.state for t in told}
    survived(f"{name} once", ended)


POINTS = (
    "split-saves", "mlflow-search-run", "cache-append", "trial-advances",
    "trial-handed-out/0/replicates/1", "bundle-written", "summary-writes",
)  # fmt: skip
ACTIONS = ("interrupt", "terminate")


@pytest.mark.parametrize(
    ("point", "action"),
    [
        pytest.param(
            point, action, marks=[] if (i + j) % 2 == 0 else pytest.mark.thorough
        )  # each point with one of the two
        for i, point in enumerate(POINTS)
        for j, action in enumerate(ACTIONS)
    ],
)
def test_interrupted_at_a_named_moment(point: str, action: str, tmp_path: Path) -> None:
    """In one process, without Ray: a signal that arrives just there, whatever thread is there."""
    storage = tmp_path / "r"
    args = (*ARGS, "--epochs", "2", "--replicates", "2")
    env = {VARIABLE: f"{point}:{action}"}
    if point.startswith("cache"):
        env["RESP_TUNE_CACHE"] = str(tmp_path / "empty")
    cut = search_inline(storage, *args, env=env)
    assert cut.code == 130, cut.err
    assert "rerun the same command with --name cut to resume" in cut.err
    assert "Traceback" not in cut.err
    before = ended_runs(storage, "cut")
    again = search_inline(storage, *args)
    assert again.code == 0, again.err
    check_counted_once(storage, "cut", 2, 2)
    assert before.items() <= ended_runs(storage, "cut").items()
    survived(f"{'SIGINT' if action == 'interrupt' else 'SIGTERM'} at a named moment")


@pytest.mark.parametrize("action", ACTIONS)
def test_before_anything_is_begun(action: str, tmp_path: Path) -> None:
    storage = tmp_path / "r"
    args = (*ARGS, "--tracking-uri", f"sqlite:///{storage}/mlflow.db")
    outcome = search_inline(storage, *args, env={VARIABLE: f"search-starts:{action}"})
    assert outcome.code == 130
    assert outcome.err.splitlines()[-1] == "interrupted"
    assert "Traceback" not in outcome.err
    assert not storage.exists()


def test_a_second_interruption_stops_at_once(tmp_path: Path) -> None:
    storage, err = tmp_path / "r", tmp_path / "err"
    running, mark = begin(storage, "--epochs", "400", err=err)
    wait_for(lambda: epochs_told(storage) >= 2)
    os.kill(running.pid, signal.SIGINT)
    wait_for(lambda: "once more to stop at once" in err.read_text(), 20)
    os.kill(running.pid, signal.SIGINT)
    told_at = time.monotonic()
    assert running.wait(timeout=10) == 130
    ended = time.monotonic() - told_at
    assert marked(mark) == []
    assert "Traceback" not in err.read_text()
    assert "stopped at once" in err.read_text()
    assert study(storage, "cut").get_trials()
    survived("SIGINT twice", ended)


def test_a_killed_worker_is_replaced(tmp_path: Path) -> None:
    """SIGKILL of a trial's worker: resumed from its checkpoint, counted once."""
    storage, err = tmp_path / "r", tmp_path / "err"
    allow(tmp_path, of_each=6)
    running, mark = begin(storage, "--epochs", "12", err=err, env=gated(tmp_path))
    wait_for(lambda: len(epochs_done(tmp_path)) == 12)
    victim = next(p for p in marked(mark) if "Trainable" in " ".join(p.cmdline()))
    os.kill(victim.pid, signal.SIGKILL)
    killed_at = time.monotonic()
    allow(tmp_path)
    wait_for(lambda: "its worker was lost" in err.read_text())
    found = re.search(r"trial (\d): its worker was lost", err.read_text())
    assert found is not None
    number = int(found[1])
    wait_for(lambda: f"{number} 7" in epochs_done(tmp_path))
    resumed = time.monotonic() - killed_at
    assert running.wait(timeout=300) == 0, err.read_text()
    assert "Traceback" not in err.read_text()
    done = epochs_done(tmp_path)
    assert sorted(set(done)) == sorted(f"{t} {e}" for t in (0, 1) for e in range(1, 13))
    again = [line for line in set(done) if done.count(line) > 1]
    assert {line.split()[0] for line in again} <= {str(number)}, "only the lost trial repeats"
    assert f"{number} 1" not in again, "it resumed from its checkpoint"
    told = study(storage, "cut").get_trials()
    assert [t.state for t in told] == [TrialState.COMPLETE] * 2
    assert [sorted(t.intermediate_values) for t in told] == [list(range(1, 13))] * 2
    assert list(trials(storage, "cut")["state"]) == ["finished"] * 2
    assert [t.user_attrs["config"]["micro_batch"] for t in told] == [None, None]
    survived("SIGKILL of a trial's worker", resumed)


def test_a_worker_killed_between_two_trials(tmp_path: Path) -> None:
    """Ray takes the next trial for failed, which has not even begun there."""
    storage, err = tmp_path / "r", tmp_path / "err"
    env = {VARIABLE: "worker-reused", FOLDER: str(tmp_path)}
    args = (*ARGS[:-4], "--trials", "5", "--name", "cut", "--epochs", "2")
    running = start("search", "--storage", str(storage), *args, env=env, err=err)
    assert running.wait(timeout=300) == 0, err.read_text()
    assert passes(tmp_path)[0][1:] == ["worker-reused", "-", "1"]
    told = study(storage, "cut").get_trials()
    assert [t.state for t in told] == [TrialState.COMPLETE] * 5
    assert [sorted(t.intermediate_values) for t in told] == [[1, 2]] * 5
    survived("SIGKILL of a worker between two trials")


def test_what_other_rays_left_behind(tmp_path: Path) -> None:
    """A stale address file, an address of nothing, and a Ray of somebody else's that runs."""
    place = Path(tempfile.mkdtemp(prefix="ray"))  # short, for Ray's sockets
    (place / f"resp_tune-{os.geteuid()}").mkdir(mode=0o700)
    for folder in (place / "ray", place / f"resp_tune-{os.geteuid()}" / "ray"):
        folder.mkdir()
        (folder / "ray_current_cluster").write_text("127.0.0.1:9")
    code = (
        "import ray, time; ray.init(address='local', num_cpus=1, include_dashboard=False);"
        "print('up', flush=True); time.sleep(600)"
    )
    theirs = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )  # fmt: skip
    try:
        assert theirs.stdout is not None
        assert theirs.stdout.readline().strip() == b"up"
        with socket.socket() as busy:
            # Ray's usual port: taken here, or by somebody else already.
            with suppress(OSError):
                busy.bind(("127.0.0.1", 6379))
            env = {"RAY_ADDRESS": "127.0.0.1:9", "RAY_TMPDIR": str(place)}
            outcome = search(tmp_path / "r", *ARGS, "--epochs", "1", env=env)
        assert outcome.code == 0, outcome.err
        assert theirs.poll() is None, "it was left alone"
        survived("a stale Ray address, a stranger's Ray and a busy port, at once")
    finally:
        os.killpg(theirs.pid, signal.SIGKILL)
        theirs.wait()
        shutil.rmtree(place)
