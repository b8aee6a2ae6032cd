"""The pages' server ends in order: the processes at the bottom first, and all of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from resp_tune import ui
from resp_tune.common.signal_handlers import interrupts_noted

# A command that leaves its child behind when it ends, as MLflow's does.
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], *sys.argv[2:]])
child.wait()
"""
POLITE = """
import signal, sys, time
from pathlib import Path
def end(*_):
    time.sleep(0.3)
    Path(sys.argv[1], "ended").touch()
    sys.exit()
signal.signal(signal.SIGTERM, end)
Path(sys.argv[1], "ready").touch()
while True:
    time.sleep(1)
"""
DEAF = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, signal.SIG_IGN)
Path(sys.argv[1], "ready").touch()
while True:
    time.sleep(1)
"""


def _start(child: str, folder: Path) -> tuple[subprocess.Popen[bytes], list[psutil.Process]]:
    command = [sys.executable, "-c", PARENT, child, str(folder)]
    process = subprocess.Popen(command, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (folder / "ready").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process, psutil.Process(process.pid).children(recursive=True)


def test_a_server_may_finish_before_its_command_ends(tmp_path: Path) -> None:
    process, children = _start(POLITE, tmp_path)
    ui._end(process)
    assert (tmp_path / "ended").exists()
    assert process.returncode is not None
    assert [one for one in children if ui._lives(one)] == []


def test_one_that_does_not_end_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ui, "END_SECONDS", 0.2)
    process, children = _start(DEAF, tmp_path)
    assert children
    ui._end(process)
    assert process.returncode is not None
    assert [one for one in children if ui._lives(one)] == []


def test_a_command_that_has_ended_is_no_error(tmp_path: Path) -> None:
    process, children = _start(POLITE, tmp_path)
    process.kill()
    process.wait()
    ui._end(process)
    ui._wait_for(children, 30.0)  # of its group
    assert [one for one in children if ui._lives(one)] == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupts_wait_for_what_must_be_done(number: int) -> None:
    original = signal.signal(number, signal.default_int_handler)  # also if pytest runs under nohup
    try:
        with interrupts_noted() as noted:
            os.kill(os.getpid(), number)
            time.sleep(0.01)
        assert noted == [number]
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, original)


def test_a_hangup_that_is_ignored_stays_ignored() -> None:
    original = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with interrupts_noted() as noted:
            os.kill(os.getpid(), signal.SIGHUP)
            time.sleep(0.01)
        assert noted == []
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, original)
