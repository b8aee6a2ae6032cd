"""Paths as they are typed."""

from __future__ import annotations

from pathlib import Path

import pytest

from resp_tune import evaluate, predict, synth, train, ui
from resp_tune.cli import run
from resp_tune.data.task_files import find_task
from resp_tune.errors import UserError
from resp_tune.paths import cache_folder, user_path
from resp_tune.tuning.space import load_space

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
