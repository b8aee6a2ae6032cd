"""What follows the last trial: the model, the one access to the test set, the registry, the report.

One search of two real trials on 24 recordings, in this process; each test finalizes it again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from support.audits import few_trees
from support.instant import FLAGS, search_here, small_spec, small_study
from support.searches import files_below

from resp_tune.common.fault_points import PlantedError, planted
from resp_tune.errors import RunError
from resp_tune.harness.failures import Failures, IncompleteError
from resp_tune.harness.finalize import command
from resp_tune.harness.remote_sync import StorageSync
from resp_tune.harness.result_files import write_tables
from resp_tune.harness.spec import SearchSpec
from resp_tune.study.study import READINGS, records
from resp_tune.tracking.search_run import SearchRuns


def finish(spec: SearchSpec) -> dict[str, Any]:
    """Run the search to its end, and return its summary."""
    return json.loads(search_here(spec).read_bytes())  # type: ignore[no-any-return]


@pytest.fixture(scope="module", autouse=True)
def _few_trees() -> Iterator[None]:
    with few_trees():
        yield


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, and a search whose trials have ended and which nothing has finalized."""
    folder = tmp_path_factory.mktemp("searched")
    with planted("trials-table:raise"), pytest.raises(PlantedError):
        finish(small_spec(folder, "--trials", "2"))
    return folder


@pytest.fixture
def spec(searched: Path, tmp_path: Path) -> SearchSpec:
    """The spec of that search, whose files are copied for one test."""
    shutil.copytree(searched / "results", tmp_path / "results")
    (tmp_path / "data").symlink_to(searched / "data")
    return small_spec(tmp_path, "--trials", "2")


def test_a_rerun_finalizes_and_trains_nothing(spec: SearchSpec) -> None:
    before = records(small_study(spec), spec.space)
    summary, folder = finish(spec), spec.location.folder
    assert records(small_study(spec), spec.space) == before
    best = max(before, key=lambda t: t.score or 0.0)
    assert summary["winner"]["number"] == best.number
    assert {"summary.json", "report.html", "trials.csv", "epochs.csv"} <= files_below(folder)
    model = json.loads((folder / "winner" / "config.json").read_text())
    assert model["provenance"]["trial"] == best.number
    assert model["weights_sha256"] == summary["test_readings"][0]["weights_sha256"]
    version = MlflowClient(spec.location.tracking_uri).get_model_version_by_alias(
        "resp_tune", "champion"
    )
    assert str(version.version) == str(summary["mlflow"]["version"])


@pytest.mark.parametrize(
    ("point", "accesses"),
    [("bundle-written", 0), ("test-access", 1), ("test-scored", 1), ("summary-writes", 1)],
)
def test_the_access_is_on_record_before_the_test_set_is_opened(
    point: str, accesses: int, spec: SearchSpec
) -> None:
    with planted(f"{point}:raise"), pytest.raises(PlantedError):
        finish(spec)
    assert len(small_study(spec).user_attrs.get(READINGS, [])) == accesses
    assert not (spec.location.folder / "summary.json").exists()
    assert len(finish(spec)["test_readings"]) == 1, "the same weights are one access"


def test_another_winner_is_another_access(spec: SearchSpec) -> None:
    first = finish(spec)
    more = small_spec(spec.location.storage.parent, "--trials", "12")
    again = finish(more)
    same = again["winner"]["number"] == first["winner"]["number"]
    assert len(again["test_readings"]) == (1 if same else 2)
    assert again["test_readings"][0] == first["test_readings"][0]


def test_a_damaged_checkpoint_is_trained_again_to_the_same_scores(
    spec: SearchSpec, said: list[str]
) -> None:
    trial = max(records(small_study(spec), spec.space), key=lambda t: t.score or 0.0)
    path = spec.location.folder / "trials" / trial.key.folder / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:500])
    summary = finish(spec)
    assert any(f"trial {trial.number} is trained again" in line for line in said)
    assert summary["winner"]["validation"]["macro_f1"] == pytest.approx(trial.score)


FAILING = {
    "mlflow-evaluation:raise": "the winner could not be logged and registered in",
    "model-logged:raise": "the winner could not be registered in MLflow (planted)",
    "model-registered:out-of-memory": "the winner could not be registered in MLflow (planted)",
    "report-writes:raise@*": "report.html could not be written (planted)",
}


def test_a_failing_step_is_named_and_repeated_by_the_same_command(
    spec: SearchSpec, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, before = spec.location.folder, records(small_study(spec), spec.space)
    for fault, words in FAILING.items():
        with planted(fault), pytest.raises(IncompleteError, match="--name small") as caught:
            finish(spec)
        assert any(words in line for line in (*said, str(caught.value)))
        summary = json.loads(caught.value.summary.read_bytes())
        assert (summary["mlflow"]["model"] is None) == ("report" not in fault)
        assert (folder / "winner" / "predictions.csv").exists()
        assert (folder / "report.html").exists() == ("report" not in fault)
        (folder / "report.html").unlink(missing_ok=True)
        access = summary["test_readings"]
    monkeypatch.setattr(SearchRuns, "close", lambda *_: "3 entries could not be written")
    monkeypatch.setattr(StorageSync, "complete", lambda _: _raise(RunError("no store")))
    with pytest.raises(IncompleteError, match="no store; the results are in"):
        finish(spec)
    assert "3 entries could not be written" in said
    monkeypatch.undo()
    summary = finish(spec)
    assert summary["mlflow"]["model"] == "resp_tune"
    assert f"version {summary['mlflow']['version']}<" in (folder / "report.html").read_text()
    assert summary["test_readings"] == access
    assert records(small_study(spec), spec.space) == before


def _raise(error: Exception) -> None:
    raise error


def test_a_table_that_cannot_be_written_is_named_and_the_next_one_is_written(
    spec: SearchSpec,
) -> None:
    folder = spec.location.folder
    (folder / "trials.csv").unlink()
    (folder / "trials.csv").mkdir()
    failures = Failures(spec.location)
    write_tables(folder, small_study(spec), spec.space, {}, failures)
    remedy = f"'{folder}/trials.csv' should be a file: move the folder of that name away"
    assert failures.lines == [f"trials.csv could not be written: {remedy}"]
    assert (folder / "epochs.csv").exists()


def test_the_command_is_shown_without_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESP_TUNE_DATA", "/data/my set")
    given = [*FLAGS[:2], "--tracking-uri", "https://me:s3cret@host/"]
    shown = command(given, None)
    assert "s3cret" not in shown
    assert shown.endswith("--data '/data/my set'")
    assert "--data" not in command(given, "here")
