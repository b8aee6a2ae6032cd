"""Paths as they are typed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from resp_tune import evaluate, predict, search, synth, train, ui
from resp_tune.cli import run
from resp_tune.common.paths import (
    MAX_NAME_BYTES,
    cache_folder,
    folder_to_write,
    user_path,
    write_atomically,
)
from resp_tune.data.tables import read_text
from resp_tune.data.task_files import find_task
from resp_tune.errors import UserError
from resp_tune.space.search_space import load_space

NOBODY = "~no-such-user/a"


def test_home_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/a") == tmp_path / "a"
    assert user_path("a/~b") == Path("a/~b")


@pytest.mark.parametrize(
    "call",
    [
        user_path,
        lambda given: find_task(f"{given}.yaml"),
        lambda given: load_space(f"{given}.yaml"),
    ],
)
def test_nobody_s_home(call: object) -> None:
    assert callable(call)
    with pytest.raises(UserError, match="there is no home folder '~no-such-user': give the whole"):
        call(NOBODY)


def test_nobody_s_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESP_TUNE_CACHE", NOBODY)
    with pytest.raises(UserError, match=NOBODY):
        cache_folder()


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (evaluate.main, ["--compare", NOBODY, NOBODY]),
        (evaluate.main, ["--out", NOBODY]),
        (predict.main, ["--winner", NOBODY, "a.wav"]),
        (synth.main, [NOBODY]),
        (train.main, ["--config", NOBODY]),
        (train.main, ["--preset", "baseline", "--out", NOBODY]),
        (train.main, ["--preset", "baseline", "--task", f"{NOBODY}.yaml"]),
        (ui.main, ["--storage", NOBODY]),
    ],
)
def test_commands_say_so_in_one_line(
    main: object, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(main, arguments) == 2  # type: ignore[arg-type]  # each is a command's body
    said = capsys.readouterr().err.strip()
    assert "no home folder '~no-such-user'" in said
    assert "\n" not in said


LONG = "x" * (MAX_NAME_BYTES + 45)


@pytest.mark.parametrize(
    "typed",
    [
        (search.main, ["--dry-run", "--space", f"{LONG}.yaml"]),
        (search.main, ["--dry-run", "--storage", f"here/{LONG}"]),
        (search.main, ["--dry-run", "--data", LONG]),
        (search.main, ["--dry-run", "--storage", "/proc/x"]),
        (evaluate.main, ["--data", "here", "--out", LONG]),
        (evaluate.main, ["--data", "here", "--out", "/proc/x"]),
        (evaluate.main, ["--compare", LONG, LONG]),
        (train.main, ["--preset", "baseline", "--data", "here", "--out", "/proc/x"]),
        (predict.main, [LONG, "--winner", LONG]),
        (synth.main, [LONG]),
    ],
)
def test_a_name_that_cannot_be_is_a_line(
    typed: tuple[Callable[[Sequence[str]], None], list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RESP_TUNE_DATA", "here")
    body, arguments = typed
    assert run(body, arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines()[-1].startswith("error: ")
    assert "Traceback" not in printed.err
    assert not list(tmp_path.rglob("*"))


def test_a_folder_to_write_is_tried_and_left_as_it_was(tmp_path: Path) -> None:
    wanted = tmp_path / "a" / "b"
    assert folder_to_write("--out", str(wanted)) == wanted
    assert not list(tmp_path.rglob("*"))
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file, not a folder"):
        folder_to_write("--out", str(tmp_path / "file" / "below"))
    with pytest.raises(UserError, match=r"--out '/proc/x': '/proc' may not be written"):
        folder_to_write("--out", "/proc/x")


@pytest.mark.parametrize("flag", ["--data", "--storage", "--tracking-uri"])
def test_an_unset_variable_is_no_folder(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(search.main, ["--dry-run", flag, ""]) == 2
    assert f"{flag} ''" in capsys.readouterr().err


def test_a_storage_that_ray_cannot_use() -> None:
    with pytest.raises(UserError, match=r"--storage '/tmp/\\udcff': Ray cannot use a path"):
        folder_to_write("--storage", "/tmp/\udcff")  # noqa: S108  # never made


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda path: path.mkdir(), "should be a file: move the folder of that name away"),
        (lambda path: path.parent.rmdir(), "cannot be used (No such file or directory): make it"),
        (
            lambda path: (path.parent.rmdir(), path.parent.write_text("")),
            "should be a folder: move the file of that name away",
        ),
    ],
    ids=["a folder", "nothing", "a file"],
)
def test_what_is_in_the_way_of_a_file_is_a_line(
    spoil: Callable[[Path], object], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "folder" / "file"
    path.parent.mkdir()
    spoil(path)
    assert run(lambda _: write_atomically(path, b"")) == 1
    error = capsys.readouterr().err
    assert said in error
    assert f"{tmp_path}/folder" in error
    assert error.endswith("then rerun the same command to resume\n")
    assert error.count("\n") == 1


def test_an_error_of_no_file_stays_what_it_is() -> None:
    def body(_: object) -> None:
        raise ConnectionRefusedError(111, "Connection refused")

    with pytest.raises(ConnectionRefusedError):
        run(body)


def test_a_closed_stdout_is_no_error() -> None:
    """`>&-`, as a shell closes it."""
    code = "import sys; sys.stdout = None; from resp_tune.cli import run; sys.exit(run(print, ''))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "patient_diagnosis.csv")
    with pytest.raises(OSError, match="it is not a file"):
        read_text(tmp_path / "patient_diagnosis.csv")
