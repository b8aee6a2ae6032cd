"""Readings of a test side after the search: on record with the search, or they do not happen."""

from __future__ import annotations

import json
import re
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from mlflow import MlflowClient
from support.audits import few_trees, make_sets, trained
from support.mlflow_stores import with_mlflow_store
from support.searches import files_below

from resp_tune import evaluate
from resp_tune.cli import run
from resp_tune.common.trial_key import TrialKey
from resp_tune.errors import UserError
from resp_tune.harness.lock import exclusive_lock
from resp_tune.harness.test_access_log import (
    access_by,
    access_entry,
    add_access,
    first_access,
    record_test_access,
)
from resp_tune.study.study import READINGS, open_study
from resp_tune.tracking.registry import READING, register_winner
from resp_tune.tracking.registry import record_test_access as record_with_model
from resp_tune.tracking.search_run import SearchRuns
from resp_tune.tracking.tags import SearchRef, Tag
from resp_tune.training.model_bundle import Bundle, load_bundle

OTHER = {"time": "2025-01-01T00:00:00Z", "winner_number": 1, "weights_sha256": "0" * 64}


@pytest.fixture(scope="module", autouse=True)
def _few_trees() -> Iterator[None]:
    with few_trees():
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sets(tmp_path_factory.mktemp("sets"))["none"]


@pytest.fixture(scope="module")
def bundle(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("trained"), data)


@pytest.fixture
def searched(bundle: Path, tmp_path: Path) -> Path:
    """The folder of a search whose winner is trial 4, with a reading of another winner."""
    folder = tmp_path / "first"
    shutil.copytree(bundle, folder / "winner")
    config = folder / "winner" / "config.json"
    content = json.loads(config.read_text())
    content["provenance"] |= {"search": "first", "trial": 4}
    config.write_text(json.dumps(content))
    study = open_study(folder / "study.db", "first", "macro_f1", optuna.samplers.RandomSampler())
    study.set_user_attr(READINGS, [OTHER])
    summary = {"name": "first", "test_readings": [OTHER], "winner": {"number": 4}}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def readings_of(folder: Path) -> list[dict[str, Any]]:
    study = optuna.load_study(study_name="first", storage=f"sqlite:///{folder}/study.db")
    return study.user_attrs[READINGS]


def opened(folder: Path) -> tuple[Bundle, dict[str, Any]]:
    bundle = load_bundle(folder)
    return bundle, access_by(bundle)


def test_a_winner_in_its_search(
    searched: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The study and the summary hold the new weights once, however often they are read."""
    winner = searched / "winner"
    assert run(evaluate.main, ["--data", f"{data}", "--winner", f"{winner}", "--json"]) == 0
    printed = capsys.readouterr()
    assert f"recorded in {searched}/study.db" in printed.err
    reading = json.loads(printed.out)["model"]["reading"]
    assert reading["winner_number"] == 4
    assert reading["weights_sha256"] == load_bundle(winner).details["weights_sha256"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", reading["time"])
    record_test_access(winner, load_bundle(winner), {**reading, "time": "later"})
    summary = json.loads((searched / "summary.json").read_text())
    assert summary["test_readings"] == readings_of(searched) == [OTHER, reading]
    assert summary["winner"] == {"number": 4}
    page = (searched / "report.html").read_text()
    assert all(one["weights_sha256"] in page for one in (OTHER, reading))
    assert not (winner / "test_readings.json").exists()


def test_weights_are_read_once() -> None:
    first, second = access_entry(3, "a" * 64), access_entry(None, "b" * 64)
    assert add_access([], first) == [first]
    assert add_access([OTHER, first], second) == [OTHER, first, second]
    assert add_access([OTHER, first], {**first, "time": "later"}) == [OTHER, first]


def test_the_same_weights_on_changed_recordings_are_another_reading() -> None:
    first, later = access_entry(3, "a" * 64, "1" * 64), access_entry(3, "a" * 64, "2" * 64)
    assert add_access([first], later) == [first, later]
    assert add_access([first, later], {**first, "time": "later"}) == [first, later]
    assert first_access([first, later], {**later, "time": "later"}) == later
    old = access_entry(3, "a" * 64)  # of release 0.1.0, which did not note them
    assert add_access([old], later) == [old]


def test_a_link_to_a_winner_and_a_search_without_a_summary(searched: Path, tmp_path: Path) -> None:
    (searched / "summary.json").unlink()
    (tmp_path / "best").symlink_to(searched / "winner")
    bundle, reading = opened(tmp_path / "best")
    assert record_test_access(tmp_path / "best", bundle, reading) == (
        reading,
        searched / "study.db",
    )
    assert readings_of(searched) == [OTHER, reading]
    assert not (searched / "summary.json").exists()


def test_a_bundle_that_stands_alone(bundle: Path, searched: Path, tmp_path: Path) -> None:
    """Of `train`, or moved away from its search: the record goes with the weights."""
    for folder, number in ((bundle, None), (searched / "winner", 4)):
        moved = shutil.copytree(folder, tmp_path / f"moved{number}")
        loaded, reading = opened(moved)
        for later in ({}, {"time": "later"}):  # the first reading stands
            stands, where = record_test_access(moved, loaded, {**reading, **later})
            assert (stands, where) == (reading, moved / "test_readings.json")
            assert json.loads((moved / "test_readings.json").read_text()) == [reading]
        assert reading["winner_number"] == number
        (moved / "test_readings.json").write_text(json.dumps([OTHER]))
        record_test_access(moved, loaded, reading)
        assert json.loads((moved / "test_readings.json").read_text()) == [OTHER, reading]
        load_bundle(moved)  # is none the worse for it


def test_a_search_that_is_running(
    searched: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with exclusive_lock(searched):
        arguments = ["--data", f"{data}", "--winner", f"{searched}/winner"]
        assert run(evaluate.main, arguments) == 2
    printed = capsys.readouterr()
    assert "being run by process" in printed.err
    assert "test split is accessed" not in printed.err
    assert printed.out == ""
    assert readings_of(searched) == [OTHER]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: (f / "study.db").write_bytes(b"x" * 100), "cannot be read as the study"),
        (lambda f: (f / "summary.json").write_text("{"), "summary.json' is damaged"),
        (lambda f: (f / "summary.json").write_text("[]"), "summary.json' is damaged"),
        (lambda f: (f / ".lock").mkdir(), "cannot be recorded"),
    ],
)
def test_what_cannot_be_recorded_in_a_search(damage: Any, words: str, searched: Path) -> None:
    damage(searched)
    before = (searched / "summary.json").read_bytes()
    with pytest.raises(UserError, match=words):
        record_test_access(searched / "winner", *opened(searched / "winner"))
    assert (searched / "summary.json").read_bytes() == before
    if "study" not in words:
        assert readings_of(searched) == [OTHER]


def test_a_study_that_another_process_writes(searched: Path) -> None:
    """Not a search, which would hold the folder: a dashboard, a copy that is being made."""
    other = sqlite3.connect(searched / "study.db")
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(UserError, match=r"cannot be recorded in .* \(database is locked\)"):
        record_test_access(searched / "winner", *opened(searched / "winner"))
    other.close()
    assert readings_of(searched) == [OTHER]
    assert json.loads((searched / "summary.json").read_text())["test_readings"] == [OTHER]


def test_what_cannot_be_recorded_beside_a_bundle(bundle: Path, tmp_path: Path, data: Path) -> None:
    moved = shutil.copytree(bundle, tmp_path / "moved")
    kept = moved / "test_readings.json"
    for text in ("{", "[1]", "{}x", '[{"time": 1}]'):
        kept.write_text(text)
        with pytest.raises(UserError, match="not a list of test-set accesses"):
            record_test_access(moved, *opened(moved))
        assert kept.read_text() == text
    kept.unlink()
    kept.mkdir()
    before = files_below(moved)
    with pytest.raises(UserError, match="is not evaluated"):
        record_test_access(moved, *opened(moved))
    assert run(evaluate.main, ["--data", str(data), "--winner", str(moved)]) == 2
    assert files_below(moved) == before


def test_a_registered_model(
    bundle: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"sqlite:///{with_mlflow_store(tmp_path)}/mlflow.db"
    runs = SearchRuns(uri, tmp_path, SearchRef("first", "macro_f1", "max"), params={})
    run_id = runs.log_evaluation(TrialKey(0), params={}, metrics={}, tags={})
    runs.close("FINISHED")
    assert run_id is not None
    register_winner(uri, tmp_path, run_id=run_id, bundle=bundle)
    arguments = ["--data", str(data), "--winner", "models:/resp_tune@champion"]
    assert run(evaluate.main, [*arguments, "--tracking-uri", uri, "--json"]) == 0
    printed = capsys.readouterr()
    assert "recorded in version 1 of model resp_tune" in printed.err
    reading = json.loads(printed.out)["model"]["reading"]
    assert reading["weights_sha256"] == load_bundle(bundle).details["weights_sha256"]
    # The same weights are on record as of the first time.
    record_with_model("models:/resp_tune/1", uri, {**reading, "time": "later"})
    version = MlflowClient(uri, uri).get_model_version("resp_tune", "1")
    assert json.loads(version.tags[READING]) == reading
    with pytest.raises(UserError, match="no version of 'resp_tune'"):
        record_with_model("models:/resp_tune/1", uri, OTHER)
    # On changed recordings they are another reading, and the first stays.
    changed = {**reading, "recordings_sha256": "0" * 64, "time": "3000-01-01T00:00:00Z"}
    assert record_with_model("models:/resp_tune/1", uri, changed)[0] == changed
    assert record_with_model("models:/resp_tune/1", uri, {**changed, "time": "a"})[0] == changed
    tags = MlflowClient(uri, uri).get_model_version("resp_tune", "1").tags
    assert [json.loads(tags[t]) for t in (READING, f"{READING}.2")] == [reading, changed]


def test_of_two_versions_the_first_reading_stands(bundle: Path, tmp_path: Path) -> None:
    """Whichever of them the store names first."""
    uri, name = f"sqlite:///{with_mlflow_store(tmp_path)}/mlflow.db", "resp_tune"
    runs = SearchRuns(uri, tmp_path, SearchRef("first", "macro_f1", "max"), params={})
    run_id = runs.log_evaluation(TrialKey(0), params={}, metrics={}, tags={})
    runs.close("FINISHED")
    assert run_id is not None
    register_winner(uri, tmp_path, run_id=run_id, bundle=bundle)
    reading, client = opened(bundle)[1], MlflowClient(uri, uri)
    first = client.get_model_version(name, "1")
    copies = [
        client.create_model_version(
            name, f"{tmp_path}", tags={Tag.WEIGHTS: reading["weights_sha256"]}
        )
        for _ in range(2)
    ]
    versions = [first, *copies]
    for version, year in zip(versions, (2002, 2001, None), strict=True):
        if year is not None:
            text = json.dumps({**reading, "time": f"{year}"})
            client.set_model_version_tag(name, version.version, READING, text)
    stands, where = record_with_model(f"models:/{name}/1", uri, reading)
    assert stands == {**reading, "time": "2001"}
    assert "3" in where
    assert json.loads(client.get_model_version(name, "3").tags[READING]) == stands
