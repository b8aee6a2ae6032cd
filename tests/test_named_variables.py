"""Messages name the environment variable that a wrong value comes from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.ports import free_port

from resp_tune import evaluate, search, synth, train
from resp_tune.cli import run
from resp_tune.cluster.connect import resolve_address
from resp_tune.cluster.local_ray import give_ray_a_home, ray_folder
from resp_tune.common.paths import cache_folder
from resp_tune.errors import UserError
from resp_tune.storage.object_store import ObjectPath, check_store


@pytest.mark.parametrize(
    ("command", "arguments"),
    [(search, ["--dry-run"]), (train, ["--preset", "baseline"]), (evaluate, [])],
)
@pytest.mark.parametrize("given", ["/nowhere", "", "gs:/sounds"])
def test_the_data_set(
    command: object,
    arguments: list[str],
    given: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    main = command.main  # type: ignore[attr-defined]  # each is a command
    monkeypatch.setenv("RESP_TUNE_DATA", given or "/nowhere")
    more = [] if given else ["--data", "/elsewhere"]
    assert run(main, [*arguments, *more]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: $RESP_TUNE_DATA: ") == bool(given), error


@pytest.mark.parametrize("given", ["foo", "ray://host:10001", "host:99999", "host:"])
def test_the_cluster(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", given)
    with pytest.raises(UserError, match=r"^\$RAY_ADDRESS: --address"):
        resolve_address("auto")
    with pytest.raises(UserError, match=r"^--address"):
        resolve_address(given)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.7:6379")
    assert resolve_address("auto") == "10.0.0.7:6379"


@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
def test_the_proxy_of_an_object_store(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable, f"http://127.0.0.1:{free_port()}")
    store = ObjectPath.parse("--storage", "s3://key:secret@sounds?endpoint_override=host.invalid")
    advice = rf"of \${variable}: unset it, or set NO_PROXY=host.invalid"
    with pytest.raises(UserError, match=advice):
        check_store("--storage", store)


def test_a_current_folder_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert run(synth.main, ["set"]) == 2
    assert "the current folder cannot be used" in capsys.readouterr().err


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As of a number that has no account, in a container."""

    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setenv("HOME", "")
    monkeypatch.setattr(Path, "home", home)
    monkeypatch.delenv("RESP_TUNE_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    with pytest.raises(UserError, match="no home folder for the cache: set RESP_TUNE_CACHE"):
        cache_folder()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "resp_tune"
    give_ray_a_home()
    assert os.environ["HOME"] == str(ray_folder())
