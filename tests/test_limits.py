"""Limits on processes and files: raised before Ray starts, and named where they are small."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from resp_tune.cluster import limits
from resp_tune.cluster.local_ray import _start_failed
from resp_tune.errors import UserError

RAISED = """
import resource
kinds = (resource.RLIMIT_NPROC, resource.RLIMIT_NOFILE)
wanted = []
for kind, low in zip(kinds, (60, 50)):
    hard = min(n for n in (resource.getrlimit(kind)[1], 4000) if n >= 0)
    resource.setrlimit(kind, (low, hard))
    wanted.append((hard, hard))
from resp_tune.cluster.limits import raise_soft_limits
raise_soft_limits()
print([resource.getrlimit(kind) for kind in kinds] == wanted)
"""


def test_soft_limits_are_raised_to_the_hard_ones() -> None:
    """In a process of its own, because a limit cannot be taken back."""
    done = subprocess.run(
        [sys.executable, "-c", RAISED],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "True\n", done.stderr


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    """A user who may start 300 more processes and threads."""
    monkeypatch.setattr(os, "getuid", lambda: 3_999_999_999)  # who has none
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 300))
    monkeypatch.setattr(limits, "CGROUPS", Path("/nowhere"))
    return 300


def test_a_small_limit_is_a_line(few: int, said: list[str]) -> None:
    limits.check_processes(2)
    (line,) = said
    assert f"may start only {few} more processes and threads" in line
    assert "raise the limit of 300 (ulimit -u, RLIMIT_NPROC)" in line


def test_with_many_cores_it_is_too_small(few: int) -> None:
    with pytest.raises(UserError, match=rf"only {few} more .* on 64 cores: raise the limit of 300"):
        limits.check_processes(64)


def test_a_failed_start_names_it(few: int, tmp_path: Path) -> None:
    message = _start_failed(RuntimeError("The current node timed out"), tmp_path, 2)
    assert "The current node timed out" in message
    assert f"only {few} more processes and threads: raise the limit of 300 (ulimit -u" in message
    assert "see its log" not in message


def test_root_and_unlimited_users_see_nothing(
    monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.setattr(limits, "CGROUPS", Path("/nowhere"))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1, 1))
    monkeypatch.setattr(os, "getuid", lambda: 0)
    limits.check_processes(64)
    monkeypatch.setattr(os, "getuid", lambda: 3_999_999_999)
    monkeypatch.setattr(
        resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    )
    limits.check_processes(64)
    limits.check_open_files(64)
    limits.check_file_size(1e12)
    limits.check_address_space()
    assert said == []


def test_a_container_s_limit_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The smallest of all control groups from the process's own upwards."""
    monkeypatch.setattr(resource, "getrlimit", lambda _: (-1, resource.RLIM_INFINITY))
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    controllers, path = next(
        line.split(":", 2)[1:] for line in lines if line.split(":")[1] in ("", "pids")
    )
    monkeypatch.setattr(limits, "CGROUPS", tmp_path)
    group = tmp_path / controllers / path.strip("/")
    group.mkdir(parents=True, exist_ok=True)
    (group / "pids.max").write_text("128\n")
    (group / "pids.current").write_text("100\n")
    with pytest.raises(UserError, match=r"only 28 more .* of 128 of its control group"):
        limits.check_processes(2)
    (group / "pids.max").write_text("max\n")
    limits.check_processes(2)


def test_few_open_files_are_a_line(monkeypatch: pytest.MonkeyPatch, said: list[str]) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (100, 256))
    limits.check_open_files(2)
    assert "raise the limit of 256 (ulimit -n, RLIMIT_NOFILE)" in said[0]
