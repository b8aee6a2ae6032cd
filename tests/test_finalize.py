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
from resp_tune.harness.finalize import command
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


def test_without_mlflow_the_winner_is_kept_and_the_command_says_so(
    spec: SearchSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(SearchRuns, "log_evaluation", lambda *_, **__: None)
        with pytest.raises(RunError, match="cannot be reached"):
            finish(spec)
    assert (spec.location.folder / "winner" / "weights.safetensors").exists()
    assert finish(spec)["mlflow"]["version"] is not None


def test_the_command_is_shown_without_passwords(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESP_TUNE_DATA", "/data/my set")
    given = [*FLAGS[:2], "--tracking-uri", "https://me:s3cret@host/"]
    shown = command(given, None)
    assert "s3cret" not in shown
    assert shown.endswith("--data '/data/my set'")
    assert "--data" not in command(given, "here")
