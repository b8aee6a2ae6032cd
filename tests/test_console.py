"""What a search prints: its plan, and its result from `summary.json`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.audits import few_trees
from support.instant import search_here, small_spec

from resp_tune.harness.console import describe_plan, describe_result, show_result


def plan(folder: Path, *flags: str) -> dict[str, str]:
    return dict(describe_plan(small_spec(folder, *flags)))


def test_the_plan_names_what_will_run(tmp_path: Path) -> None:
    topics = plan(tmp_path, "--trials", "7", "--replicates", "3", "--sampler", "random")
    assert topics["search"] == f"small → {tmp_path / 'results' / 'small'}"
    assert topics["data"].startswith(f"{tmp_path / 'data'}: 24 recordings of 12 patients")
    assert "dropout, lr; 1 front end" in topics["space"]
    assert topics["budget"].startswith("7 trials of 3 epochs, random and none, 2 trials at once")
    assert "best 4 on 3 seeds" in topics["budget"]
    assert topics["metric"].startswith("macro_f1")
    assert topics["tracking"] == f"sqlite:///{tmp_path / 'results' / 'mlflow.db'}"
    assert "cluster" not in topics


def test_a_budget_of_time_and_a_tracking_store(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/other.db"
    topics = plan(tmp_path, "--time-budget", "10m", "--tracking-uri", uri)
    assert "time" in topics["budget"]
    assert topics["tracking"] == uri


def test_the_plan_changes_nothing_on_disk(tmp_path: Path) -> None:
    plan(tmp_path, "--trials", "2")
    assert not (tmp_path / "results").exists()


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The summary of a search with replicates."""
    spec = small_spec(tmp_path_factory.mktemp("console"), "--trials", "2", "--replicates", "2")
    with few_trees():
        return search_here(spec)


@pytest.fixture
def summary(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())  # type: ignore[no-any-return]


def test_the_result_names_winner_scores_and_baselines(summary: dict[str, Any], path: Path) -> None:
    text = "\n".join(describe_result(summary, path.parent))
    winner = summary["winner"]
    assert f"winner: trial {winner['number']}" in text
    assert f"{winner['validation']['macro_f1']:.3f}" in text
    assert f"{winner['replicates']['bound']:.3f}" in text
    assert f"{summary['baselines']['device']['macro_f1']:.3f}" in text
    bands = summary["baselines"]["audio_linear"]["macro_f1"]
    assert f"from band statistics of the audio {bands:.3f} / " in text
    assert "winner − band statistics, on the test patients: " in text
    assert str(path.parent / "report.html") in text


def test_synthetic_data_and_later_accesses_are_said(summary: dict[str, Any], path: Path) -> None:
    quiet = summary | {"data": summary["data"] | {"synthetic": False}}
    loud = summary | {"data": summary["data"] | {"synthetic": True}}
    loud["test_readings"] = summary["test_readings"] * 3
    before, after = (list(describe_result(s, path.parent)) for s in (quiet, loud))
    new = [line for line in after if line not in before]
    assert len(new) == 2
    assert "3 times" in new[0]
    assert "SYNTHETIC" in new[1]


def test_the_last_line_is_the_path(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    show_result(path)
    assert capsys.readouterr().out.splitlines()[-1] == str(path)
