"""A nested search: one test-set access a fold, pooled figures, and resuming at any moment.

One search of real trials on 24 recordings of 12 patients, in this process, that is interrupted
between its outer folds, in one of them and in its last step; the tests read what it has left.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.trial import FrozenTrial
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, log_loss
from support.audits import few_trees
from support.instant import FLAGS, search_here, small_spec
from support.old_release import make_recordings
from support.report_folders import Page
from support.searches import search, summary

from resp_tune.common.fault_points import VARIABLE, PlantedError, planted
from resp_tune.errors import UserError
from resp_tune.evaluation.baselines import load_baseline_predictions
from resp_tune.evaluation.compare import compare, read_predictions
from resp_tune.harness.console import describe_plan
from resp_tune.harness.options import SearchOptions
from resp_tune.harness.run import prepare_study
from resp_tune.harness.spec import SearchSpec
from resp_tune.harness.stages import RayBackend
from resp_tune.nested.rounds import TimeShares
from resp_tune.nested.shared_ray import share_ray
from resp_tune.reporting.report_html import render
from resp_tune.study.study import read_study

FOLDS = 2
NESTED = ("--outer-folds", str(FOLDS), "--epochs", "1")
# One fault a command, in the order of a search; each command gets further than the one before.
FAULTS = (
    "outer-fold-ended/0:raise",
    "test-access:raise",  # in outer fold 1
    "summary-writes:raise@3",  # in the last search, after the two times of outer fold 1
)


@dataclass(frozen=True)
class Searched:
    """A nested search that was interrupted at each of `FAULTS`, and the trials before each."""

    spec: SearchSpec
    summary: dict[str, Any]
    before: list[dict[str, tuple[Any, ...]]]

    @property
    def folder(self) -> Path:
        return self.spec.location.folder

    @property
    def table(self) -> pd.DataFrame:
        texts = dict.fromkeys(("recording", "patient", "label"), str)
        return pd.read_csv(self.folder / "predictions.csv", dtype=texts)


def trial_of(trial: FrozenTrial) -> tuple[Any, ...]:
    return trial.params, trial.values, trial.datetime_start, trial.datetime_complete


def ended_trials(folder: Path) -> dict[str, tuple[Any, ...]]:
    """The ended trials of all searches as their studies have them, by folder and number."""
    found = {}
    for path in (folder / "study.db", *sorted(folder.glob("outer/*/study.db"))):
        for trial in read_study(path, folder.name).get_trials():
            if trial.state.is_finished():
                found[f"{path.parent.name}/{trial.number}"] = trial_of(trial)
    return found


@pytest.fixture(scope="module", autouse=True)
def _few_trees() -> Iterator[None]:
    with few_trees():
        yield


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Searched:
    folder, before = tmp_path_factory.mktemp("nested"), []
    for fault in FAULTS:
        spec = small_spec(folder, *NESTED, "--trials", "1")
        with planted(fault), pytest.raises(PlantedError):
            search_here(spec)
        assert not (spec.location.folder / "summary.json").exists()
        before.append(ended_trials(spec.location.folder))
    spec = small_spec(folder, *NESTED, "--trials", "1")
    summary = json.loads(search_here(spec).read_bytes())
    return Searched(spec, summary, before)


def test_nothing_is_repeated(searched: Searched) -> None:
    now = ended_trials(searched.folder)
    assert set(now) == {"small/0", *(f"{k}/0" for k in range(FOLDS))}
    for before in searched.before:
        assert before.items() <= now.items()
    assert [len(before) for before in searched.before] == [1, 2, 3]


def test_one_test_set_access_for_each_fold_and_none_for_the_model(searched: Searched) -> None:
    summary = searched.summary
    assert [len(fold["test_readings"]) for fold in summary["outer"]] == [1] * FOLDS
    assert summary["test_readings"] == []
    assert summary["winner"]["test"] is None
    assert summary["winner"]["price_of_searching"] is None
    own = pd.read_csv(searched.folder / "winner" / "predictions.csv")
    assert set(own["side"]) == {"validation"}


def test_the_summary_has_all_searches(searched: Searched) -> None:
    summary = searched.summary
    assert summary["trials"] == {"finished": FOLDS + 1, "pruned": 0, "diverged": 0, "failed": 0}
    assert [fold["fold"] for fold in summary["outer"]] == list(range(FOLDS))
    for fold in summary["outer"]:
        own = json.loads((searched.folder / fold["folder"] / "summary.json").read_text())
        assert fold["test"] == own["winner"]["test"]
        assert fold["winner"]["params"] == own["winner"]["params"]
        assert own["outer_fold"] == fold["fold"]
        assert own["mlflow"]["model"] is None
    prices = [f["winner"]["price_of_searching"]["difference"] for f in summary["outer"]]
    assert summary["price_of_searching"]["difference"] == pytest.approx(np.mean(prices))
    assert summary["pooled"]["price_of_searching"] == summary["price_of_searching"]


def test_each_tested_patient_is_predicted_once_by_a_search_without_it(searched: Searched) -> None:
    table = searched.table
    assert not table["recording"].duplicated().any()
    assert set(table["side"]) == {"test"}
    tested = [set(own["patient"]) for _, own in table.groupby("outer_fold")]
    assert len(set.union(*tested)) == sum(map(len, tested))
    assert searched.summary["pooled"]["patients"] == len(set.union(*tested))
    for spec, patients in zip(searched.spec.outer, tested, strict=True):
        split = spec.data.datamodule.split
        stems = {s for fold in split.folds for s in (*fold.train, *fold.validation)}
        assert not patients & {stem.split("_")[0] for stem in stems}


def plain_scores(labels: np.ndarray, probabilities: np.ndarray) -> dict[str, float]:
    """Metrics by scikit-learn; `labels` are columns of `probabilities`."""
    predicted, present = probabilities.argmax(1), sorted(set(labels))
    return {
        "macro_f1": f1_score(labels, predicted, labels=present, average="macro", zero_division=0),
        "balanced_accuracy": balanced_accuracy_score(labels, predicted),
        "accuracy": accuracy_score(labels, predicted),
        "log_loss": log_loss(labels, probabilities, labels=range(probabilities.shape[1])),
    }


def test_pooled_metrics_are_those_of_the_predictions(searched: Searched) -> None:
    pooled, table, classes = searched.summary["pooled"], searched.table, searched.summary["classes"]
    columns = [f"p_{name}" for name in classes]
    labels = table["label"].map(classes.index).to_numpy()
    for name, value in plain_scores(labels, table[columns].to_numpy()).items():
        assert pooled[name] == pytest.approx(value), name
        low, high = pooled["intervals"][name]
        assert low <= value <= high
    logs = np.log(table[columns]).groupby(table["patient"]).mean()
    of_patients = np.exp(logs).div(np.exp(logs).sum(axis=1), axis=0)
    labels = table.groupby("patient")["label"].first().map(classes.index).to_numpy()
    for name, value in plain_scores(labels, of_patients.to_numpy()).items():
        assert pooled[f"patient_{name}"] == pytest.approx(value, rel=1e-5), name
        assert pooled["by_patient"][name] == pooled[f"patient_{name}"]
    for name, row in pooled["per_class"].items():
        own = table[table["label"] == name]
        assert row["support"] == len(own)
        assert row["recall"] == pytest.approx((own["predicted"] == name).mean())
    assert {k: v["clips"] for k, v in pooled["by_device"].items()} == {"Meditron": len(table)}


def test_differences_are_to_baselines_of_the_same_folds(searched: Searched) -> None:
    """The interval is compared with a bootstrap written here, on draws of its own."""
    pooled, table, classes = searched.summary["pooled"], searched.table, searched.summary["classes"]
    each = [load_baseline_predictions(s.data.datamodule) for s in searched.spec.outer]
    labels = table["label"].map(classes.index).to_numpy()
    ours = table[[f"p_{name}" for name in classes]].to_numpy().argmax(1)
    assert set(pooled["differences"]) == {"majority", "device", "all", "audio_linear"}
    answers = {
        "majority": np.concatenate([np.full(len(e.labels), e.majority) for e in each])[None],
        **{n: np.concatenate([e.by_baseline[n] for e in each], axis=1)
           for n in ("device", "all", "audio_linear")},
    }  # fmt: skip
    patients = table["patient"].to_numpy()
    names, random = np.unique(patients), np.random.default_rng(5)
    draws = [
        np.concatenate([np.flatnonzero(patients == p) for p in random.choice(names, len(names))])
        for _ in range(2000)
    ]
    for name, rows in answers.items():
        better = (ours == labels) - (rows == labels).mean(0)
        value, low, high = pooled["differences"][name]["accuracy"]
        assert value == pytest.approx(better.mean())
        ends = np.quantile([better[draw].mean() for draw in draws], [0.025, 0.975])
        assert [low, high] == pytest.approx(ends, abs=0.13)  # a patient is an eighth
        assert pooled["baselines"][name]["accuracy"] == pytest.approx((rows == labels).mean())


def test_mlflow_has_a_child_search_for_each_fold(searched: Searched) -> None:
    client = MlflowClient(searched.spec.location.tracking_uri)
    tracking = searched.summary["mlflow"]
    runs = client.search_runs([tracking["experiment_id"]])
    parent = client.get_run(tracking["parent_run_id"])
    assert {run.data.tags["resp_tune.search"] for run in runs} == {"small"}
    assert {run.info.status for run in runs} == {"FINISHED"}

    def below(run: Run) -> list[Run]:
        return [r for r in runs if r.data.tags.get("mlflow.parentRunId") == run.info.run_id]

    def kinds(run: Run) -> list[str]:
        return sorted(r.data.tags["resp_tune.kind"] for r in below(run))

    assert "mlflow.parentRunId" not in parent.data.tags
    assert kinds(parent) == ["evaluation", *["search"] * FOLDS, "trial"]
    children = [r for r in below(parent) if r.data.tags["resp_tune.kind"] == "search"]
    folds = sorted(children, key=lambda r: r.data.tags["resp_tune.outer_fold"])
    assert [r.data.tags["resp_tune.outer_fold"] for r in folds] == list(map(str, range(FOLDS)))
    for run, fold in zip(folds, searched.summary["outer"], strict=True):
        assert run.info.run_id == fold["parent_run_id"]
        assert kinds(run) == ["evaluation", "trial"]
        assert run.data.params["test_fold"] == str(fold["fold"])
    assert len(runs) == 1 + 2 + FOLDS * 3
    (evaluation,) = [r for r in below(parent) if r.data.tags["resp_tune.kind"] == "evaluation"]
    assert not any(name.startswith("test_") for name in evaluation.data.metrics)
    pooled = searched.summary["pooled"]["macro_f1"]
    assert evaluation.data.metrics["pooled_macro_f1"] == pytest.approx(pooled)
    (version,) = client.search_model_versions("name = 'resp_tune'")
    assert version.run_id == evaluation.info.run_id, "the last search's model, and no other"
    assert version.tags["resp_tune.test"].startswith("none")


def test_the_report_leads_with_the_pooled_figures(searched: Searched) -> None:
    page, pooled = Page(render(searched.folder)), searched.summary["pooled"]
    assert page.words.index(f"Pooled test macro-F1 {pooled['macro_f1']:.3f}") < 400
    for words in ("All outer folds", "it has no test score", "Band statistics", "Each class"):
        assert words in page.words
    for fold in range(FOLDS):
        assert ("href", f"outer/{fold}/report.html") in page.attributes
        assert (searched.folder / "outer" / str(fold) / "report.html").is_file()
    own = Page(searched.folder / "outer" / "1" / "report.html")
    assert "small, outer fold 1" in own.words
    (searched.folder / "predictions.csv").rename(searched.folder / "moved")
    assert "predictions.csv is missing" in Page(render(searched.folder)).words
    (searched.folder / "moved").rename(searched.folder / "predictions.csv")


def test_pooled_predictions_are_compared(searched: Searched) -> None:
    table = read_predictions(str(searched.folder))
    (split,) = compare(table, table)["sides"].items()
    assert split[0] == "test"
    assert split[1]["patients"] == searched.summary["pooled"]["patients"]
    assert split[1]["metrics"]["macro_f1"]["difference"] == 0


def test_another_number_of_outer_folds_is_refused_with_the_difference(searched: Searched) -> None:
    folder = searched.spec.location.storage.parent
    for given, now in ((("--outer-folds", "3"), 3), ((), 1)):
        with pytest.raises(UserError, match=f"outer folds was {FOLDS}, now {now}"):
            small_spec(folder, *given, "--epochs", "1", "--trials", "1")


@pytest.mark.slow
def test_more_trials_extend_every_search_and_a_damaged_fold_is_run_again(
    searched: Searched,
) -> None:
    """The last test of the module: it changes the search."""
    folder, before = searched.spec.location.storage.parent, ended_trials(searched.folder)
    (searched.folder / "outer" / "1" / "summary.json").unlink()
    again = json.loads(search_here(small_spec(folder, *NESTED, "--trials", "1")).read_bytes())
    assert again["pooled"] == searched.summary["pooled"]
    assert ended_trials(searched.folder) == before
    more = json.loads(search_here(small_spec(folder, *NESTED, "--trials", "2")).read_bytes())
    after = ended_trials(searched.folder)
    assert before.items() <= after.items()
    assert len(after) == 2 * len(before)
    assert more["trials"]["finished"] == 2 * (FOLDS + 1)


def test_a_search_of_one_test_split_is_not_continued_as_a_nested_one(tmp_path: Path) -> None:
    spec = small_spec(tmp_path)
    spec.location.folder.mkdir(parents=True)
    prepare_study(spec)
    with pytest.raises(UserError, match="outer folds was 1, now 2"):
        small_spec(tmp_path, "--outer-folds", "2")


def test_a_dry_run_has_the_plan_of_all_searches(tmp_path: Path) -> None:
    plan = dict(describe_plan(small_spec(tmp_path, *NESTED, "--trials", "4")))
    assert plan["nested"].startswith("3 searches: one for each of 2 outer folds")
    assert "no test score" in plan["nested"]
    assert plan["budget"].startswith("in each of 3 searches 4 trials of 1 epoch")
    assert not (tmp_path / "results").exists()


def test_one_ray_is_started_for_all_searches_and_only_if_one_needs_it() -> None:
    events: list[str] = []

    class Backend(RayBackend):
        @contextmanager
        def started(self) -> Iterator[None]:
            events.append("started")
            yield
            events.append("ended")

    with share_ray(Backend) as make:
        one, other = (make(cast(Any, compute)) for compute in ("a", "b"))
        assert events == []
        for backend in (one, other):
            with backend.started():
                assert events == ["started"]
    assert events == ["started", "ended"]


def test_a_time_budget_is_divided_over_the_searches_that_remain() -> None:
    times, options = TimeShares(90.0, 3), SearchOptions(outer_folds=2, time_budget=90.0)
    assert times.share(options).time_budget == 30.0
    times.spend(10.0)  # it ended early
    assert times.share(options).time_budget == 40.0
    times.spend(100.0)  # its replicates took longer than its share
    assert times.share(options).time_budget == 40.0
    unlimited = SearchOptions(outer_folds=2)
    assert TimeShares(None, 3).share(unlimited) is unlimited


@pytest.mark.slow
def test_killed_with_ray_in_the_second_outer_fold(tmp_path: Path) -> None:
    data, storage = tmp_path / "data", tmp_path / "results"
    make_recordings(data)
    args = (*FLAGS, *NESTED, "--trials", "2", "--data", str(data))
    outcome = search(storage, *args, env={VARIABLE: "trial-ended@3"})
    assert outcome.code == -signal.SIGKILL, outcome.err
    assert "Traceback" not in outcome.err
    before = ended_trials(storage / "small")
    assert len(before) >= 3
    outcome = search(storage, *args)
    assert outcome.code == 0, outcome.err
    assert "outer fold 0 of" not in outcome.err, "it was complete"
    assert outcome.lines[-1] == str(storage / "small" / "summary.json")
    assert before.items() <= ended_trials(storage / "small").items()
    found = summary(storage, "small")
    assert found["trials"]["finished"] == 6
    assert [len(fold["test_readings"]) for fold in found["outer"]] == [1, 1]
