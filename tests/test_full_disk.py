"""A disk that is really full, in each folder that a search writes to: one line, then resumed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fault_log import survived
from support.inline import search_inline, use_inline_backend
from support.searches import command, files_below, study, trials

ARGS = ("--space", "search_spaces/smoke.yaml", "--scheduler", "none", "--name", "full")
ROOMY = "300m"


@pytest.fixture
def disk() -> Iterator[Path]:
    """A small disk of its own, at a short path (Ray's sockets); a test gives it its size."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small disk")
    folder = Path(tempfile.mkdtemp(prefix="disk"))
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={ROOMY}", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode != 0:
        pytest.skip(f"no disk can be mounted here: {made.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)
    folder.rmdir()


def resize(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


# What is too large for the disk, and the message.
CASES = [
    ("results", "60k", "study.db' cannot be used (database or disk is full)"),
    ("results", "400k", "disk full while writing the MLflow store"),
    ("cache", "20k", "RESP_TUNE_CACHE"),
    ("results", "1300k", "checkpoint.pt'"),
    ("temporary", "2m", "the winner could not be registered"),
]


def use_a_disk_that_others_fill() -> None:
    """Let the checks before the start find space, as if others filled the disk afterwards."""
    use_inline_backend()
    free = 10**12
    shutil.disk_usage = lambda _path: shutil._ntuple_diskusage(free, 0, free)  # type: ignore[attr-defined]  # in a fork


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("full") / "data"
    made = command("synth", str(folder), "--recordings", "40", "--seconds", "5")
    assert made.code == 0, made.err
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "size", "message"),
    [pytest.param(*c, marks=[pytest.mark.thorough] * ("MLflow" in c[2])) for c in CASES],
)
def test_a_full_disk(
    place: str, size: str, message: str, data: Path, disk: Path, tmp_path: Path
) -> None:
    """One line says where; the search is resumed once there is space."""
    storage = disk if place == "results" else tmp_path / "results"
    env = {
        "cache": {"RESP_TUNE_CACHE": str(disk)},
        "temporary": {"TMPDIR": str(disk), "RAY_TMPDIR": str(disk)},
    }.get(place, {})
    args = (*ARGS, "--data", str(data), "--epochs", "2", "--trials", "4")
    args = (*args, "--tracking-uri", f"sqlite:///{storage}/mlflow.db")  # it makes the tables
    resize(disk, size)
    full = search_inline(storage, *args, env=env, prepare=use_a_disk_that_others_fill)
    assert full.code == 1, full.err
    errors = [line for line in full.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, full.err
    assert message in errors[0]
    assert "Traceback" not in full.err
    resize(disk, ROOMY)
    begun = time.monotonic()
    after = search_inline(storage, *args, env=env)
    took = time.monotonic() - begun
    assert after.code == 0, after.err
    table = trials(storage, "full")
    assert list(table["number"]) == [0, 1, 2, 3]
    assert set(table["state"]) == {"finished"}
    told = study(storage, "full").get_trials()
    assert [len(t.intermediate_values) for t in told] == [2] * 4
    left = {name for name in files_below(storage) if ".part" in name}
    assert not left, "half-written files"
    survived(f"disk full: {place}", took)
