"""All that a search needs is tried before its start: each entry of the table is broken in turn."""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
import socket
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.bad_inputs import check
from support.ports import free_port
from support.small_sets import write_set

from resp_tune import search
from resp_tune.cluster import limits
from resp_tune.harness.preflight_checks import CHECKS

DIAGNOSES = {
    f"{100 + n}_1b1_{place}_sc_{device}": ("COPD", "Healthy", "URTI")[n % 3]
    for n in range(15)
    for place, device in (("Al", "Meditron"), ("Pr", "LittC2SE"))
}


class Broken:
    """Ways to take from a search what it needs, until the end of the test."""

    def __init__(self, place: Path, patch: pytest.MonkeyPatch) -> None:
        self.place, self.patch = place, patch
        self.arguments: list[str] = []

    def variable(self, name: str, value: object) -> None:
        self.patch.setenv(name, str(value))

    def argument(self, flag: str, value: object) -> None:
        self.arguments += [flag, str(value)]

    def file(self, name: str) -> None:
        (self.place / name).parent.mkdir(parents=True, exist_ok=True)
        (self.place / name).write_text("")

    def limit(self, kind: int, value: int) -> None:
        given = resource.getrlimit
        self.patch.setattr(
            resource, "getrlimit", lambda k: (value, value) if k == kind else given(k)
        )
        self.patch.setattr(os, "getuid", lambda: 12345)  # root has no limit on processes

    def full(self, part: str) -> None:
        """Let the disk of folders with `part` in their path have no space."""
        given = shutil.disk_usage
        self.patch.setattr(
            shutil,
            "disk_usage",
            lambda path: SimpleNamespace(free=0) if part in str(path) else given(path),
        )

    def function(self, owner: object, name: str, error: Exception) -> None:
        def call(*_args: object, **_options: object) -> None:
            raise error

        self.patch.setattr(owner, name, call)


def closed_shared_memory(broken: Broken) -> None:
    given = tempfile.TemporaryFile

    def temporary_file(dir: Path) -> object:
        if dir == limits.SHARED_MEMORY:
            raise PermissionError(13, "denied")
        return given(dir=dir)

    broken.patch.setattr(tempfile, "TemporaryFile", temporary_file)


def long_folder(broken: Broken) -> None:
    (broken.place / ("long_" * 14)).mkdir()
    broken.variable("RAY_TMPDIR", broken.place / ("long_" * 14))


def beyond_ascii(broken: Broken) -> None:
    (broken.place / "données").mkdir()
    broken.variable("RAY_TMPDIR", broken.place / "données")


def crashing_ray(broken: Broken) -> None:
    broken.variable("RAY_memory_usage_threshold", "0.9")
    ended = SimpleNamespace(returncode=-11)
    broken.patch.setattr(subprocess, "run", lambda *_, **__: ended)


def broken_link(broken: Broken, name: str) -> None:
    (broken.place / name).parent.mkdir(parents=True, exist_ok=True)
    (broken.place / name).symlink_to("nowhere/at/all")


def another_users_files(broken: Broken) -> None:
    broken.file("here/results/first/summary.json")
    broken.patch.setattr(os, "access", lambda *_: False)


NO_TEMPORARY = FileNotFoundError(2, "No usable temporary directory found")
# For each entry of the table: how to break it, and what the message then says.
CASES: dict[str, list[tuple[Callable[[Broken], object], str]]] = {
    "temporary folder": [
        (lambda b: b.function(tempfile, "gettempdir", NO_TEMPORARY), "set TMPDIR to one that can")
    ],
    "cache limit": [
        (lambda b: b.variable("RESP_TUNE_CACHE_GB", "many"), "RESP_TUNE_CACHE_GB='many' is not")
    ],
    "cache folder": [
        (lambda b: b.variable("RESP_TUNE_CACHE", "/proc/x"), "RESP_TUNE_CACHE '/proc/x': '/proc'"),
        (lambda b: b.file("cache/features"), "is a file, not a folder: set RESP_TUNE_CACHE to"),
        (lambda b: b.file("cache/baselines"), "is a file, not a folder: set RESP_TUNE_CACHE to"),
        (lambda b: b.file("cache/sounds"), "is a file, not a folder: set RESP_TUNE_CACHE to"),
        (
            lambda b: b.function(fcntl, "flock", OSError(38, "Function not implemented")),
            "cannot be locked (Function not implemented): set RESP_TUNE_CACHE to",
        ),
    ],
    "storage": [
        (lambda b: b.argument("--storage", "/proc/x"), "--storage '/proc/x': '/proc' may not be"),
        (
            lambda b: broken_link(b, "here/results"),
            "results' is a broken link: give another folder",
        ),
        (lambda b: b.argument("--storage", "50%"), "folder with ?, # or % in its path: give"),
        (lambda b: b.argument("--storage", "why?"), "give another folder, or --tracking-uri"),
    ],
    "search folder": [
        (lambda b: b.file("here/results/first"), "--name 'first' clashes with"),
        (lambda b: broken_link(b, "here/results/first"), "first' is a broken link: give another"),
        (another_users_files, "first/summary.json' may not be written: give another name"),
    ],
    "databases": [
        (
            lambda b: b.function(sqlite3, "connect", sqlite3.OperationalError("disk I/O error")),
            "sqlite cannot keep a database in",
        )
    ],
    "disk of the storage": [(lambda b: b.full("here"), "MB free: free some space, or give")],
    "MLflow's variables": [
        (lambda b: b.variable("MLFLOW_HTTP_REQUEST_TIMEOUT", "soon"), "MLFLOW_HTTP_REQUEST_TIM"),
        (lambda b: b.variable("MLFLOW_ENABLE_ASYNC_LOGGING", "maybe"), "MLFLOW_ENABLE_ASYNC_L"),
    ],
    "tracking store": [
        (lambda b: b.argument("--tracking-uri", "sqlite:////proc/x.db"), "'/proc' cannot be"),
        (
            lambda b: b.variable("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}"),
            "$MLFLOW_TRACKING_URI: no MLflow server answers",
        ),
    ],
    "Ray's variables": [
        (crashing_ray, "Ray crashes with RAY_memory_usage_threshold as in the environment")
    ],
    "Ray's folder": [
        (lambda b: b.variable("RAY_TMPDIR", "/proc/x"), "RAY_TMPDIR '/proc/x': '/proc' may not"),
        (lambda b: b.variable("RAY_TMPDIR", __file__), "is a file, not a folder: set RAY_TMPDIR"),
        (beyond_ascii, "Ray cannot use letters beyond ASCII in it: set RAY_TMPDIR"),
        (long_folder, "bytes too long for the paths of Ray's sockets"),
    ],
    "Ray's login": [
        (lambda b: b.variable("RAY_AUTH_MODE", "tokn"), "RAY_AUTH_MODE='tokn' is not token or"),
        (lambda b: b.variable("RAY_AUTH_TOKEN_PATH", "/proc/x"), "RAY_AUTH_TOKEN_PATH='/proc/x'"),
    ],
    "object store": [
        (
            lambda b: b.patch.setattr(limits, "SHARED_MEMORY", Path("/proc/x")),
            "there is no /proc/x, where Ray keeps its object store",
        ),
        (
            closed_shared_memory,
            "shm, for Ray's object store, may not be written (denied): give it the mode 1777",
        ),
        (lambda b: b.full("/ray"), "free some space, or set RAY_TMPDIR to a folder on another"),
    ],
    "loopback": [
        (
            lambda b: b.function(socket, "create_server", OSError(99, "Cannot assign requested")),
            "127.0.0.1, where Ray's processes meet, cannot be used",
        )
    ],
    "processes": [(lambda b: b.limit(resource.RLIMIT_NPROC, 2), "raise the limit of 2 (ulimit -u")],
    "open files": [
        (lambda b: b.limit(resource.RLIMIT_NOFILE, 20), "raise the limit of 20 (ulimit -n")
    ],
    "file size": [
        (lambda b: b.limit(resource.RLIMIT_FSIZE, 10**7), "a file may have 10 MB (ulimit -f")
    ],
    "address space": [
        (lambda b: b.limit(resource.RLIMIT_AS, 10**9), "may have 1.0 GB of address space")
    ],
    "feature caches": [
        (lambda b: b.full("/cache"), "MB free: free some space, or set RESP_TUNE_C")
    ],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small data set."""
    return write_set(tmp_path_factory.mktemp("preflight") / "data", DIAGNOSES)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with an empty folder `here`, in which the search is run, and one for its cache."""
    (tmp_path / "cache").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("RESP_TUNE_CACHE", str(tmp_path / "cache"))
    with tempfile.TemporaryDirectory(prefix="ray") as short:  # for Ray's sockets
        monkeypatch.setenv("RAY_TMPDIR", short)
        yield tmp_path


EACH = [(e.name, n) for e in CHECKS for n in range(max(1, len(CASES.get(e.name, ()))))]


@pytest.mark.parametrize(("name", "number"), EACH)
def test_each_need_is_tried_before_the_start(
    name: str, number: int, place: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert CASES.get(name), f"write a case that breaks '{name}'"
    broken = Broken(place, monkeypatch)
    spoil, said = CASES[name][number]
    spoil(broken)
    argv = ["--data", str(data), "--gpus", "0", "--name", "first", *broken.arguments]
    code, error = check(search.main, argv, place / "here")  # and nothing is written
    assert (code, said in error) == (2, True), error


def test_a_sound_machine_passes(place: Path, data: Path) -> None:
    # Nothing is written, in the cache folder neither.
    assert check(search.main, ["--data", str(data), "--gpus", "0", "--dry-run"], place)[0] == 0
