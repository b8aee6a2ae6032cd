"""Recordings, sessions and patients: what is scored, what is optimised, and what is shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mlflow import MlflowClient
from support.audits import few_trees
from support.instant import search_here, small_spec, small_study

from resp_tune.common.choices import LEVELS, at_level
from resp_tune.errors import UserError
from resp_tune.evaluation.score import group_metrics, metrics_with_intervals, pool_tables
from resp_tune.harness.console import describe_result
from resp_tune.harness.spec import SearchSpec
from resp_tune.search import read_options


def finish(spec: SearchSpec) -> dict[str, Any]:
    with few_trees():
        return json.loads(search_here(spec).read_bytes())  # type: ignore[no-any-return]


def test_a_search_optimises_the_level_that_is_asked_for(tmp_path: Path) -> None:
    spec = small_spec(tmp_path, "--level", "patient", "--trials", "2")
    summary = finish(spec)
    assert (summary["metric"], summary["level"]) == ("macro_f1", "patient")
    epochs = pd.read_csv(spec.location.folder / "epochs.csv")
    assert list(epochs.columns[:5]) == ["number", "epoch", "train_loss", "val_loss", "val_macro_f1"]
    last = epochs.groupby("number").last()
    for trial in small_study(spec).get_trials():
        assert trial.value == pytest.approx(last["val_patient_macro_f1"][trial.number])
    winner = summary["winner"]
    best = last["val_patient_macro_f1"].max()
    assert winner["validation"]["patient_macro_f1"] == pytest.approx(best)
    assert winner["price_of_searching"]["best_validation"] == pytest.approx(best)
    test = winner["test"]
    assert winner["price_of_searching"]["test"] == pytest.approx(test["patient_macro_f1"])
    for level in LEVELS:
        key = at_level("balanced_accuracy", level)
        low, high = test["intervals"][key]
        assert 0 <= low <= test[key] <= high <= 1
    assert test["by_patient"]["macro_f1"] == pytest.approx(test["patient_macro_f1"])
    client = MlflowClient(spec.location.tracking_uri)
    run = client.get_run(summary["mlflow"]["parent_run_id"])
    assert run.data.metrics["best_patient_macro_f1"] == pytest.approx(best)
    assert run.data.params["level"] == "patient"
    page = (spec.location.folder / "report.html").read_text()
    assert "Metrics by level" in page
    assert "objective <b>macro-F1 by patient</b>" in page
    lines = list(describe_result(summary, spec.location.folder))
    assert any(line.startswith("test, each patient: macro_f1 ") for line in lines)
    with pytest.raises(UserError, match="level was 'patient', now 'recording'"):
        small_spec(tmp_path, "--trials", "2")


def test_pooled_tables_hold_each_session_and_patient_once(tmp_path: Path) -> None:
    spec = small_spec(tmp_path, "--trials", "1")
    finish(spec)
    datamodule = spec.data.datamodule
    path = spec.location.folder / "winner" / "predictions.csv"
    predictions = pd.read_csv(path, dtype={"patient": str})
    table = predictions[predictions["side"] == "test"].reset_index(drop=True)
    pooled = pool_tables(table, datamodule)
    session_of = {r.stem: r.session for r in datamodule.dataset.recordings}
    assert len(pooled["session"]) == table["recording"].map(session_of).nunique()
    assert sorted(pooled["patient"]["patient"]) == sorted(set(table["patient"]))
    label_of = dict(zip(table["patient"], table["label"], strict=True))
    for rows in pooled.values():
        assert [label_of[p] for p in rows["patient"]] == list(rows["label"])
    found = group_metrics(table, datamodule)
    expected = metrics_with_intervals(pooled["session"], datamodule.split.classes)
    assert found["by_session"] == expected


def test_cycles_have_no_other_level() -> None:
    with pytest.raises(UserError, match="--level patient needs a task whose label is of the patie"):
        read_options(["--task", "cycles", "--level", "patient"])
    with pytest.raises(UserError, match="unknown --level 'person'"):
        read_options(["--level", "person"])
