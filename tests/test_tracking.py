"""SearchRuns on real stores: sqlite files and a real `mlflow server` process."""

from __future__ import annotations

import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from support.mlflow_stores import (
    PARAMS,
    all_runs,
    epoch,
    mlflow_server,
    open_search,
    with_mlflow_store,
)
from support.ports import free_port

from resp_tune.common.trial_key import TrialKey
from resp_tune.errors import UserError
from resp_tune.tracking.search_run import SearchRuns
from resp_tune.tracking.ui_links import list_searches


def fill(runs: SearchRuns) -> None:
    """A study of four trials, one of each end, as the driver replays it."""
    states = ("finished", "pruned", "diverged", "failed")
    for number, state in enumerate(states):
        runs.trials.start_trial(
            TrialKey(number), params=PARAMS, seed=10 + number, tags={"resp_tune.device": "cpu"}
        )
        for e in range(1, 4):
            value = math.nan if state == "diverged" else 0.1 * number + 0.2 * e
            runs.trials.log_epochs(TrialKey(number), [epoch(e, value)])
        score = {"finished": 0.6, "pruned": 0.7}.get(state)
        error = "ValueError: no" if state == "failed" else None
        runs.trials.end_trial(TrialKey(number), state, score=score, seconds=2.5, error=error)  # type: ignore[arg-type]  # a literal
    runs.log_best(0.5, 1)
    runs.log_best(0.6, 0)


def contents(uri: str) -> dict[str, list[Any]]:
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as database:
        tables = ("runs", "metrics", "params", "tags", "experiment_tags")
        return {t: sorted(database.execute(f"SELECT * FROM {t}"), key=repr) for t in tables}  # noqa: S608  # our own names


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"sqlite:///{with_mlflow_store(tmp_path)}/mlflow.db"


def test_states_tags_parameters_and_metrics(uri: str, tmp_path: Path) -> None:
    runs = open_search(uri, tmp_path)
    fill(runs)
    ids = runs.run_ids()
    evaluation = runs.log_evaluation(
        TrialKey(0),
        params={"lr": 0.003},
        metrics={"test_macro_f1": 0.5},
        tags={"resp_tune.weights_sha256": "ab"},
    )
    runs.close("FINISHED")
    found = all_runs(uri)
    assert {TrialKey(n): found[f"trial-{n}"].info.run_id for n in range(4)} == ids
    ends = {0: ("FINISHED", "finished"), 1: ("KILLED", "pruned")}
    ends |= {2: ("FAILED", "diverged"), 3: ("FAILED", "failed")}
    for number, (status, state) in ends.items():
        run = found[f"trial-{number}"]
        tags = run.data.tags
        assert (run.info.status, tags["resp_tune.state"]) == (status, state)
        assert tags["resp_tune.kind"] == "trial"
        assert tags["resp_tune.search"] == "first"
        assert tags["resp_tune.trial_number"] == str(number)
        assert tags["resp_tune.device"] == "cpu"
        assert tags["mlflow.parentRunId"] == runs.parent_run_id
        assert run.data.params == {k: str(v) for k, v in {**PARAMS, "seed": 10 + number}.items()}
        assert run.data.metrics["total_seconds"] == 2.5
        assert run.info.end_time >= run.info.start_time
    assert found["trial-0"].data.metrics["macro_f1"] == 0.6
    assert "macro_f1" not in found["trial-2"].data.metrics
    assert "no" in found["trial-3"].data.tags["resp_tune.error"]
    history = MlflowClient(uri).get_metric_history(ids[TrialKey(0)], "val_macro_f1")
    assert [(m.step, m.value) for m in history] == [(1, 0.2), (2, 0.4), (3, pytest.approx(0.6))]
    assert math.isnan(found["trial-2"].data.metrics["val_macro_f1"])
    parent = found["first"]
    assert (parent.info.status, parent.data.tags["resp_tune.kind"]) == ("FINISHED", "search")
    assert parent.data.metrics == {"macro_f1": 0.6, "best_macro_f1": 0.6, "best_trial": 0}
    assert parent.data.params == {"trials": "4"}
    tested = [run for run in found.values() if "test_macro_f1" in run.data.metrics]
    assert [run.info.run_id for run in tested] == [evaluation]
    assert tested[0].data.tags["resp_tune.kind"] == "evaluation"


def test_a_replay_changes_nothing_and_growth_shows(uri: str, tmp_path: Path) -> None:
    runs = open_search(uri, tmp_path)
    fill(runs)
    reading: dict[str, Any] = {
        "trial": TrialKey(0),
        "params": {},
        "metrics": {"test_macro_f1": 0.5},
    }
    first = runs.log_evaluation(**reading, tags={"resp_tune.weights_sha256": "ab"})
    runs.close("FINISHED")
    before = contents(uri)

    again = open_search(uri, tmp_path)
    assert again.parent_run_id == runs.parent_run_id
    assert MlflowClient(uri).get_run(runs.parent_run_id).info.status == "RUNNING"
    again.log_best(0.4, 3)
    fill(again)
    assert again.log_evaluation(**reading, tags={"resp_tune.weights_sha256": "ab"}) == first
    again.close("FINISHED")
    after = contents(uri)
    for table in ("metrics", "params", "tags", "experiment_tags"):
        assert after[table] == before[table]
    assert len(after["runs"]) == len(before["runs"]) == 6

    grown = open_search(uri, tmp_path, params={"trials": 8})
    assert grown.log_evaluation(**reading, tags={"resp_tune.weights_sha256": "cd"}) != first
    grown.close("FINISHED")
    parent = MlflowClient(uri).get_run(runs.parent_run_id).data
    assert (parent.params["trials"], parent.tags["resp_tune.trials"]) == ("4", "8")


def test_replicates_have_runs_of_their_own(uri: str, tmp_path: Path) -> None:
    """Told twice, as by a replay; the trial that they repeat keeps its own run and its score."""
    for _ in range(2):
        runs = open_search(uri, tmp_path)
        fill(runs)
        for index, state in ((1, "finished"), (2, "pruned")):
            runs.trials.start_trial(TrialKey(0, index), params=PARAMS, seed=20 + index)
            runs.trials.log_epochs(TrialKey(0, index), [epoch(1, 0.1), epoch(2, 0.9)])
            runs.trials.end_trial(TrialKey(0, index), state, score=0.9, seconds=1.0)  # type: ignore[arg-type]  # a literal
        ids = runs.run_ids()
        runs.close("FINISHED")
    found = all_runs(uri)
    replicate_ids = {TrialKey(0, n): found[f"replicate-0-{n}"].info.run_id for n in (1, 2)}
    assert ids == {TrialKey(n): found[f"trial-{n}"].info.run_id for n in range(4)} | replicate_ids
    for index, status in ((1, "FINISHED"), (2, "KILLED")):
        run = found[f"replicate-0-{index}"]
        assert run.info.status == status
        assert run.data.tags["resp_tune.kind"] == "replicate"
        assert run.data.tags["resp_tune.trial_number"] == "0"
        assert run.data.tags["resp_tune.replicate"] == str(index)
        assert run.data.tags["mlflow.parentRunId"] == runs.parent_run_id
        assert run.data.params["seed"] == str(20 + index)
        steps = MlflowClient(uri).get_metric_history(run.info.run_id, "val_macro_f1")
        assert [metric.step for metric in steps] == [1, 2]
    assert found["trial-0"].data.metrics["macro_f1"] == 0.6
    assert found["first"].data.metrics["best_macro_f1"] == 0.6
    runs = open_search(uri, tmp_path)  # the one that was stopped is run on after all
    runs.trials.start_trial(TrialKey(0, 2), params=PARAMS, seed=22, again=True)
    runs.trials.log_epochs(TrialKey(0, 2), [epoch(2, 0.9), epoch(3, 0.8)])
    runs.trials.end_trial(TrialKey(0, 2), "finished", score=0.8, seconds=1.0)
    runs.close("FINISHED")
    again = all_runs(uri)["replicate-0-2"]
    assert (again.info.run_id, again.info.status) == (ids[TrialKey(0, 2)], "FINISHED")
    assert again.data.tags["resp_tune.state"] == "finished"
    steps = MlflowClient(uri).get_metric_history(ids[TrialKey(0, 2)], "val_macro_f1")
    assert [metric.step for metric in steps] == [1, 2, 3]


def test_a_killed_driver_goes_on_in_the_same_runs(uri: str, tmp_path: Path) -> None:
    script = f"""
import os, signal
from pathlib import Path
from support.mlflow_stores import PARAMS, epoch, open_search
from resp_tune.common.trial_key import TrialKey
runs = open_search({uri!r}, Path({str(tmp_path)!r}))
for number in (0, 1):
    runs.trials.start_trial(TrialKey(number), params=PARAMS, seed=10 + number)
    runs.trials.log_epochs(TrialKey(number), [epoch(1, 0.2 + 0.1 * number), epoch(2, 0.4)])
runs.trials.end_trial(TrialKey(0), "finished", score=0.4, seconds=1.0)
runs.run_ids()
os.kill(os.getpid(), signal.SIGKILL)
"""
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders)}
    killed = subprocess.run([sys.executable, "-c", script], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    before = all_runs(uri)
    assert [before[name].info.status for name in ("trial-0", "trial-1", "first")] == [
        "FINISHED",
        "RUNNING",
        "RUNNING",
    ]
    runs = open_search(uri, tmp_path)
    runs.trials.start_trial(TrialKey(1), params=PARAMS, seed=11)
    runs.trials.log_epochs(TrialKey(1), [epoch(e, 0.1 * e) for e in (1, 2, 3)])
    assert runs.run_ids() == {TrialKey(n): before[f"trial-{n}"].info.run_id for n in (0, 1)}
    runs.close("KILLED")
    after = all_runs(uri)
    assert set(after) == set(before)
    trial = after["trial-1"]
    assert (trial.info.status, trial.data.tags["resp_tune.state"]) == ("KILLED", "interrupted")
    history = MlflowClient(uri).get_metric_history(trial.info.run_id, "train_loss")
    assert [metric.step for metric in history] == [1, 2, 3]
    assert after["first"].info.status == "KILLED"

    runs = open_search(uri, tmp_path)
    runs.trials.start_trial(TrialKey(1), params=PARAMS, seed=11)
    runs.run_ids()
    assert all_runs(uri)["trial-1"].info.status == "RUNNING"
    runs.trials.end_trial(TrialKey(1), "finished", score=0.3, seconds=1.0)
    runs.close("FINISHED")
    assert all_runs(uri)["trial-1"].info.status == "FINISHED"


def test_a_number_given_to_other_parameters_gets_another_run(uri: str, tmp_path: Path) -> None:
    """As when a machine is lost with a trial that no other machine knows of."""
    runs = open_search(uri, tmp_path)
    for number in (0, 1):
        runs.trials.start_trial(
            TrialKey(number), params={**PARAMS, "lr": 0.01, "micro_batch": 8}, seed=1
        )
        runs.trials.log_epochs(TrialKey(number), [epoch(1, 0.9), epoch(2, 0.9)])
    runs.trials.end_trial(TrialKey(1), "finished", score=0.9, seconds=1.0)
    before = runs.run_ids()
    runs.close("KILLED")
    runs = open_search(uri, tmp_path)
    runs.trials.start_trial(TrialKey(0), params={**PARAMS, "lr": 0.01, "micro_batch": 4}, seed=1)
    runs.trials.start_trial(
        TrialKey(1), params={**PARAMS, "lr": 0.02, "micro_batch": 8}, seed=1, again=True
    )
    runs.trials.log_epochs(TrialKey(1), [epoch(1, 0.1)])
    after = runs.run_ids()
    runs.close("KILLED")
    assert after[TrialKey(0)] == before[TrialKey(0)], "only memory was short"
    assert after[TrialKey(1)] != before[TrialKey(1)]
    other = all_runs(uri)["trial-1"]
    assert (other.info.run_id, other.data.params["lr"]) == (after[TrialKey(1)], "0.02")
    history = MlflowClient(uri).get_metric_history(after[TrialKey(1)], "val_macro_f1")
    assert [(m.step, m.value) for m in history] == [(1, 0.1)]


@pytest.mark.slow
def test_an_outage_loses_nothing_and_delays_nobody(said: list[str], tmp_path: Path) -> None:
    port = free_port()
    with mlflow_server(tmp_path, port) as address:
        runs = open_search(address, tmp_path)
        runs.trials.start_trial(TrialKey(0), params=PARAMS, seed=1)
        assert list(runs.run_ids()) == [TrialKey(0)]
    start = time.monotonic()
    runs.trials.log_epochs(TrialKey(0), [epoch(1, 0.5)])
    runs.trials.end_trial(TrialKey(0), "finished", score=0.5, seconds=1.0)
    runs.trials.start_trial(TrialKey(1), params=PARAMS, seed=2)
    assert time.monotonic() - start < 0.1
    assert runs.run_ids(seconds=1.5) == {TrialKey(0): runs.run_ids(seconds=0)[TrialKey(0)]}
    assert sum("the search continues" in line for line in said) == 1
    with mlflow_server(tmp_path, port) as address:
        runs.trials.end_trial(TrialKey(1), "pruned", score=0.2, seconds=1.0)
        runs.close("FINISHED")
        found = all_runs(address)
        assert set(found) == {"first", "trial-0", "trial-1"}
        assert found["trial-0"].data.metrics["macro_f1"] == 0.5
        assert found["trial-1"].info.status == "KILLED"
        assert "back" in said[-1]
        location = MlflowClient(address).get_experiment(runs.experiment_id).artifact_location
        assert location.startswith("mlflow-artifacts:")
        lost = open_search(address, tmp_path, "second")
    lost.trials.start_trial(TrialKey(0), params=PARAMS, seed=1)
    assert lost.log_evaluation(TrialKey(0), params={}, metrics={}, tags={}, seconds=0.5) is None
    start = time.monotonic()
    missing = lost.close("FINISHED", seconds=1.0)
    assert time.monotonic() - start < 3
    assert missing is not None
    assert missing.startswith("4 entries could not be written")


def test_a_locked_database_is_waited_for(uri: str, tmp_path: Path) -> None:
    runs = open_search(uri, tmp_path)
    with closing(sqlite3.connect(uri.removeprefix("sqlite:///"))) as other:
        other.execute("BEGIN EXCLUSIVE")
        start = time.monotonic()
        runs.trials.start_trial(TrialKey(0), params=PARAMS, seed=1)
        runs.trials.log_epochs(TrialKey(0), [epoch(1, 0.5)])
        assert time.monotonic() - start < 0.1
        time.sleep(1.0)
        other.rollback()
    runs.close("FINISHED")
    assert all_runs(uri)["trial-0"].data.metrics["val_macro_f1"] == 0.5


def test_a_run_deleted_in_the_ui_is_said_and_stops_nothing(
    said: list[str], uri: str, tmp_path: Path
) -> None:
    runs = open_search(uri, tmp_path)
    runs.trials.start_trial(TrialKey(0), params=PARAMS, seed=1)
    MlflowClient(uri).delete_run(runs.run_ids()[TrialKey(0)])
    runs.trials.log_epochs(TrialKey(0), [epoch(1, 0.5)])
    runs.trials.end_trial(TrialKey(7), "finished", score=0.5, seconds=1.0)
    runs.trials.start_trial(TrialKey(1), params=PARAMS, seed=2)
    runs.trials.end_trial(TrialKey(1), "finished", score=0.5, seconds=1.0)
    missing = runs.close("FINISHED")
    assert missing is not None
    assert missing.startswith("3 entries could not be written")
    assert all_runs(uri)["trial-1"].info.status == "FINISHED"
    assert any("epochs of trial 0" in line for line in said)
    assert any("trial 7 was never started" in line for line in said)


def test_one_batch_for_all_epochs(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = open_search(uri, tmp_path)
    runs.trials.start_trial(TrialKey(0), params=PARAMS, seed=1)
    runs.run_ids()
    batches = list[int]()
    log_batch = MlflowClient.log_batch

    def counted(client: MlflowClient, run_id: str, metrics: Any = (), **more: Any) -> Any:
        batches.append(len(metrics))
        return log_batch(client, run_id, metrics, **more)

    monkeypatch.setattr(MlflowClient, "log_batch", counted)
    runs.trials.log_epochs(TrialKey(0), [epoch(e, 0.5) for e in range(1, 11)])
    runs.run_ids()
    assert batches == [30]
    for e in range(11, 16):
        runs.trials.log_epochs(TrialKey(0), [epoch(e, 0.5)])
    (run_id,) = runs.run_ids().values()
    assert batches == [30, 15]
    history = MlflowClient(uri).get_metric_history(run_id, "val_macro_f1")
    assert [metric.step for metric in history] == list(range(1, 16))
    times = [metric.timestamp for metric in history]
    assert times == sorted(times)
    runs.close("FINISHED")


def test_epochs_are_written_though_nobody_asks(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the time that they wait for each other, in one batch, and before the trial's end."""
    monkeypatch.setattr("resp_tune.tracking.trial_runs.LINGER_SECONDS", 0.4)
    runs = open_search(uri, tmp_path)
    runs.trials.start_trial(TrialKey(0), params=PARAMS, seed=1)
    (run_id,) = runs.run_ids().values()
    runs.trials.log_epochs(TrialKey(0), [epoch(1, 0.5)])
    runs.trials.log_epochs(TrialKey(0), [epoch(2, 0.6)])
    client = MlflowClient(uri)
    assert client.get_metric_history(run_id, "val_macro_f1") == []
    until = time.monotonic() + 10
    while not (found := client.get_metric_history(run_id, "val_macro_f1")):
        assert time.monotonic() < until
        time.sleep(0.05)
    assert [metric.step for metric in found] == [1, 2]
    runs.trials.log_epochs(TrialKey(0), [epoch(3, 0.7)])
    time.sleep(0.1)
    assert len(client.get_metric_history(run_id, "val_macro_f1")) == 2  # it waits for others again
    runs.trials.end_trial(TrialKey(0), "finished", score=0.7, seconds=1.0)
    runs.close("FINISHED")
    run = client.get_run(run_id)
    assert (run.info.status, run.data.metrics["val_macro_f1"]) == ("FINISHED", 0.7)
    assert len(client.get_metric_history(run_id, "val_macro_f1")) == 3


def test_epochs_of_a_run_that_is_run_again_stay_behind_its_start(uri: str, tmp_path: Path) -> None:
    """A replicate that had failed: what it does now must not be taken for what it did."""
    runs = open_search(uri, tmp_path)
    runs.trials.start_trial(TrialKey(0, 1), params=PARAMS, seed=1)
    runs.trials.log_epochs(TrialKey(0, 1), [epoch(1, 0.5)])
    runs.trials.end_trial(TrialKey(0, 1), "failed", score=None, seconds=1.0, error="why")
    runs.trials.start_trial(TrialKey(0, 1), params=PARAMS, seed=1, again=True)
    runs.trials.log_epochs(TrialKey(0, 1), [epoch(1, 0.5), epoch(2, 0.6)])
    runs.trials.end_trial(TrialKey(0, 1), "finished", score=0.6, seconds=1.0)
    runs.close("FINISHED")
    (run_id,) = runs.run_ids().values()
    found = MlflowClient(uri).get_metric_history(run_id, "val_macro_f1")
    assert [(metric.step, metric.value) for metric in found] == [(1, 0.5), (2, 0.6)]
    assert MlflowClient(uri).get_run(run_id).info.status == "FINISHED"


def test_a_deleted_study_begun_anew_gets_runs_of_its_own(uri: str, tmp_path: Path) -> None:
    old = open_search(uri, tmp_path, study_id="a")
    fill(old)
    old.close("FINISHED")
    new = open_search(uri, tmp_path, study_id="b")
    new.trials.start_trial(TrialKey(0), params=PARAMS, seed=1)
    assert new.parent_run_id != old.parent_run_id
    assert set(new.run_ids().values()).isdisjoint(old.run_ids().values())
    new.close("FINISHED")
    newest, oldest = list_searches(uri)
    assert (newest.search.study_id, newest.best) == ("b", ())
    assert (oldest.search.study_id, oldest.score, len(oldest.best)) == ("a", 0.6, 1)


def test_two_searches_start_at_once_on_a_fresh_store_elsewhere_and_quietly(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    script = """
import sys
from pathlib import Path
from resp_tune.common.trial_key import TrialKey
from resp_tune.tracking.search_run import SearchRuns
from resp_tune.tracking.tags import SearchRef
uri, storage, name = sys.argv[1:]
runs = SearchRuns(uri, Path(storage), SearchRef(name, "macro_f1", "max"), params={})
runs.trials.start_trial(TrialKey(0), params={"lr": 1}, seed=1)
runs.trials.end_trial(TrialKey(0), "finished", score=0.5, seconds=1.0)
runs.close("FINISHED")
"""
    storage, uri = tmp_path / "results", f"sqlite:///{tmp_path}/results/mlflow.db"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    environment.pop("MLFLOW_TRACKING_URI", None)
    started = [
        subprocess.Popen(
            [sys.executable, "-c", script, uri, str(storage), name],
            cwd=tmp_path / "elsewhere",
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for name in ("one", "two")
    ]
    for process in started:
        output, _ = process.communicate(timeout=120)
        assert (process.returncode, output) == (0, b"")
    assert list((tmp_path / "elsewhere").iterdir()) == []
    searches = list_searches(uri)
    assert {entry.search.name for entry in searches} == {"one", "two"}
    assert len({search.experiment_id for search in searches}) == 1
    location = MlflowClient(uri).get_experiment(searches[0].experiment_id).artifact_location
    assert location == f"file://{storage}/mlartifacts"


def test_a_deleted_experiment_is_said(uri: str, tmp_path: Path) -> None:
    runs = open_search(uri, tmp_path)
    runs.close("FINISHED")
    MlflowClient(uri).delete_experiment(runs.experiment_id)
    with pytest.raises(UserError, match="mlflow experiments restore"):
        open_search(uri, tmp_path)
