"""Searches on a cluster of network namespaces, and what they must leave."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from optuna.trial import TrialState

from support.hosts import Network
from support.searches import command, study, summary, trials

ARGS = ("--space", "search_spaces/smoke.yaml", "--scheduler", "none")
EPOCHS = 12


def end(running: subprocess.Popen[bytes]) -> None:
    """Leave nothing of a failed test to the next one."""
    with suppress(ProcessLookupError):
        os.killpg(running.pid, signal.SIGKILL)


def command_line(net: Network, storage: Path, data: Path, *args: str) -> list[str]:
    return [
        sys.executable, "-m", "resp_tune.search", "--address", net.address,
        "--storage", str(storage), "--data", str(data), *ARGS, *args,
    ]  # fmt: skip


def check_whole(storage: Path, name: str, count: int, epochs: int = EPOCHS) -> None:
    """Every trial once and finished, each epoch once, in the study and in the tables."""
    told = study(storage, name).get_trials()
    assert [t.number for t in told] == list(range(count))
    assert {t.state for t in told} == {TrialState.COMPLETE}
    assert [sorted(t.intermediate_values) for t in told] == [list(range(1, epochs + 1))] * count
    assert list(trials(storage, name)["state"]) == ["finished"] * count
    assert summary(storage, name)["trials"]["finished"] == count


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set in a folder of its own, which a host may be unable to see."""
    folder = tmp_path_factory.mktemp("data") / "set"
    made = command("synth", str(folder), "--recordings", "60", "--seconds", "4")
    assert made.code == 0, made.err
    return folder
