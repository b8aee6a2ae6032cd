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

import pytest
from optuna.trial import TrialState
from support import faults
from support.fault_log import survived
from support.searches import MARK, marked, search, start, study, trials, wait_for

ARGS = (
    "--space", "search_spaces/smoke.yaml", "--gpus", "0", "--scheduler", "none",
    "--concurrency", "2", "--trials", "2", "--name", "cut",
)  # fmt: skip

pytestmark = pytest.mark.slow


def epochs_told(storage: Path) -> int:
    if not (storage / "cut" / "study.db").exists():
        return 0
    return sum(len(t.intermediate_values) for t in study(storage, "cut").get_trials())


def epochs_of(storage: Path, number: int) -> int:
    return len(study(storage, "cut").get_trials()[number].intermediate_values)


def begin(storage: Path, *args: str, err: Path) -> tuple[subprocess.Popen[bytes], str]:
    mark = uuid.uuid4().hex
    given = ("--storage", str(storage), *ARGS, *args)
    return start("search", *given, env={MARK: mark}, err=err), mark


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("moment", ["start", "ray", "trials"])
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


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_before_anything_is_begun(name: str, tmp_path: Path) -> None:
    storage, err = tmp_path / "r", tmp_path / "err"
    running, mark = begin(storage, err=err)
    maps = Path(f"/proc/{running.pid}/maps")
    wait_for(lambda: "libtorch" in maps.read_text())  # as it checks what it was given
    os.kill(running.pid, getattr(signal, name))
    assert running.wait(timeout=30) == 130
    assert err.read_text().splitlines()[-1] == "interrupted"
    assert "Traceback" not in err.read_text()
    assert not storage.exists()
    assert marked(mark) == []


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
    running, mark = begin(storage, "--epochs", "600", err=err)
    wait_for(lambda: len(list((storage / "cut").glob("trials/*/checkpoint.pt"))) == 2)
    checkpoints = sorted((storage / "cut").glob("trials/*/checkpoint.pt"))
    victim = next(p for p in marked(mark) if "Trainable" in " ".join(p.cmdline()))
    os.kill(victim.pid, signal.SIGKILL)
    killed_at = time.monotonic()
    wait_for(lambda: "its worker was lost" in err.read_text())
    found = re.search(r"trial (\d): its worker was lost", err.read_text())
    assert found is not None
    before = epochs_of(storage, int(found[1]))
    wait_for(lambda: epochs_of(storage, int(found[1])) > before or running.poll() is not None)
    went_on = time.monotonic() - killed_at
    assert running.wait(timeout=300) == 0, err.read_text()
    assert "its worker was lost; it goes on from its checkpoint" in err.read_text()
    assert "Traceback" not in err.read_text()
    assert len(checkpoints) == 2
    told = study(storage, "cut").get_trials()
    assert [t.state for t in told] == [TrialState.COMPLETE] * 2
    assert [sorted(t.intermediate_values) for t in told] == [list(range(1, 601))] * 2
    assert list(trials(storage, "cut")["state"]) == ["finished"] * 2
    assert [t.user_attrs["config"]["micro_batch"] for t in told] == [None, None]
    survived("SIGKILL of a trial's worker", went_on)


DIES_IDLE = """
    import os, signal
    reset = trainable.TrialTrainable.reset_config
    def reset_config(self, new_config):
        try:
            os.mkdir(os.environ["DIED"])
        except FileExistsError:
            return reset(self, new_config)
        os.kill(os.getpid(), signal.SIGKILL)
    trainable.TrialTrainable.reset_config = reset_config
"""


def test_a_worker_killed_between_two_trials(tmp_path: Path) -> None:
    """Ray takes the next trial for failed, which has not even begun there."""
    storage, err, died = tmp_path / "r", tmp_path / "err", tmp_path / "died"
    env = {**faults.planted(tmp_path, "", tuning__trainable=DIES_IDLE), "DIED": str(died)}
    args = (*ARGS[:-4], "--trials", "5", "--name", "cut", "--epochs", "2")
    running = start("search", "--storage", str(storage), *args, env=env, err=err)
    assert running.wait(timeout=300) == 0, err.read_text()
    assert died.exists()
    told = study(storage, "cut").get_trials()
    assert [t.state for t in told] == [TrialState.COMPLETE] * 5
    assert [sorted(t.intermediate_values) for t in told] == [[1, 2]] * 5
    survived("SIGKILL of a worker between two trials")


def test_two_at_once_and_a_dead_holder(tmp_path: Path) -> None:
    storage, err = tmp_path / "r", tmp_path / "err"
    running, _ = begin(storage, "--epochs", "400", err=err)
    wait_for(lambda: (storage / "cut" / ".held_by").exists())
    time.sleep(0.5)
    begun = time.monotonic()
    second = search(storage, *ARGS, "--epochs", "400")
    refused = time.monotonic() - begun
    assert second.code == 2
    assert f"is being run by process {running.pid} on" in second.err
    assert "Traceback" not in second.err
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    assert (storage / "cut" / ".held_by").exists(), "left by the dead"
    third = search(storage, *ARGS, "--epochs", "400", "--time-budget", "1s")
    assert "is being run by" not in third.err
    assert third.code in (0, 1), third.err
    survived("a second process of the same name, refused", refused)
    survived("a lock left by a dead process, taken over")


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
