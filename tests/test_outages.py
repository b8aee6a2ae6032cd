"""A whole search whose MLflow goes away: in the middle, for good, and before the start."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from support.fault_log import THOROUGH, survived
from support.gates import allow, epochs_done, gated
from support.inline import search_inline, start_inline
from support.mlflow_stores import mlflow_server
from support.ports import free_port
from support.postgres import PASSWORD, postgres, why_none
from support.searches import files_below, start, study, summary, trials, wait_for

from resp_tune.execution.trainable import REPORT_SECONDS
from resp_tune.study import study as studies
from resp_tune.study.samplers import make_sampler

pytestmark = pytest.mark.slow
NO_POSTGRES = why_none()
# `--thorough` runs the searches with Ray, and outages last as long as MLflow's servers restart.
AWAY_SECONDS, LOCKED_SECONDS = (60.0, 15.0) if THOROUGH else (0.0, 0.0)
MEANWHILE = 20  # epochs that are trained during an outage
# With Ray, an epoch that ends so long after a trial's last report is reported with those before it.
PAUSE_SECONDS = REPORT_SECONDS + 0.5 if THOROUGH else 0.1


def args(tracking: str, epochs: int, trial_count: int = 2) -> tuple[str, ...]:
    return (
        "--space", "search_spaces/smoke.yaml", "--gpus", "0", "--scheduler", "none",
        "--concurrency", "2", "--epochs", str(epochs), "--trials", str(trial_count),
        "--name", "away", "--tracking-uri", tracking,
    )  # fmt: skip


def epochs_told(storage: Path) -> int:
    if not (storage / "away" / "study.db").exists():
        return 0
    return sum(len(t.intermediate_values) for t in study(storage, "away").get_trials())


def begin(storage: Path, given: tuple[str, ...], folder: Path) -> Any:
    """Start a search, return its process when four epochs are reported; its trials then wait."""
    allow(folder, of_each=0)
    begun = start if THOROUGH else start_inline
    where = ("search", "--storage", str(storage)) if THOROUGH else (storage,)
    running = begun(*where, *given, env=gated(folder), err=folder / "err")
    train_until(4, storage, folder)
    return running


def train_on(storage: Path, folder: Path, seconds: float) -> None:
    """Let the search train and report epochs during an outage of at least `seconds`."""
    begun = time.monotonic()
    train_until(epochs_told(storage) + MEANWHILE, storage, folder)
    time.sleep(max(0.0, seconds - (time.monotonic() - begun)))


def train_until(told: int, storage: Path, folder: Path) -> None:
    """Let the two trials train until `told` epochs are reported, and wait then.

    A trial that waits may have epochs that it has not reported; it does so after the next one.
    """
    epoch = told // 2
    while True:
        allow(folder, of_each=epoch)
        wait_for(lambda e=epoch: len(epochs_done(folder)) >= 2 * e)  # type: ignore[misc]  # bound at once
        time.sleep(PAUSE_SECONDS)
        if epochs_told(storage) >= told:
            return
        epoch += 1


def check(tracking: str, storage: Path, epochs: int) -> None:
    """MLflow has every trial, each epoch once, and the winner."""
    client = MlflowClient(tracking)
    experiment = client.get_experiment_by_name("resp_tune")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert {r.info.status for r in runs} == {"FINISHED"}
    children = [r for r in runs if r.data.tags["resp_tune.kind"] == "trial"]
    assert sorted(r.info.run_id for r in children) == sorted(
        trials(storage, "away")["mlflow_run_id"]
    )
    for run in children:
        steps = [m.step for m in client.get_metric_history(run.info.run_id, "val_loss")]
        assert sorted(steps) == list(range(1, epochs + 1))
    version = summary(storage, "away")["mlflow"]["version"]
    assert [int(v.version) for v in client.search_model_versions("name = 'resp_tune'")] == [version]


def test_away_in_mid_search(tmp_path: Path) -> None:
    port, storage, err = free_port(), tmp_path / "r", tmp_path / "err"
    with mlflow_server(tmp_path, port) as address:
        running = begin(storage, args(address, 30), tmp_path)
    train_on(storage, tmp_path, AWAY_SECONDS)
    wait_for(lambda: "are written when MLflow is back" in err.read_text())
    with mlflow_server(tmp_path, port) as address:
        back = time.monotonic()
        wait_for(lambda: "MLflow is back" in err.read_text() or running.poll() is not None)
        noticed = time.monotonic() - back
        allow(tmp_path)
        assert running.wait(timeout=300) == 0, err.read_text()
        check(address, storage, 30)
    said = err.read_text()
    assert "MLflow is back" in said
    assert "Traceback" not in said
    survived("the MLflow server stopped in mid-search", noticed)


def test_away_for_good_and_back_for_the_next_command(tmp_path: Path) -> None:
    port, storage, err = free_port(), tmp_path / "r", tmp_path / "err"
    with mlflow_server(tmp_path, port) as address:
        given = args(address, 10)
        running = begin(storage, given, tmp_path)
    allow(tmp_path)
    assert running.wait(timeout=300) == 1
    said = err.read_text()
    assert "the winner could not be logged and registered in" in said
    assert summary(storage, "away")["mlflow"]["model"] is None
    assert "Traceback" not in said
    assert set(trials(storage, "away")["state"]) == {"finished"}
    with mlflow_server(tmp_path, port):
        again = search_inline(storage, *given)
        assert again.code == 0, again.err
        check(address, storage, 10)
    survived("the MLflow server down to the end, up for the next command")


def test_away_at_the_start(tmp_path: Path) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    begun = time.monotonic()
    outcome = search_inline(tmp_path / "r", *args(address, 1))
    refused = time.monotonic() - begun
    assert outcome.code == 2
    assert f"no MLflow server answers at '{address}'" in outcome.err
    assert "Traceback" not in outcome.err
    assert files_below(tmp_path) == set()
    survived("the MLflow server down at the start, refused", refused)


def test_a_tracking_database_locked_in_mid_search(tmp_path: Path) -> None:
    storage, err = tmp_path / "r", tmp_path / "err"
    tracking = f"sqlite:///{tmp_path}/mlflow.db"
    running = begin(storage, args(tracking, 30), tmp_path)
    with closing(sqlite3.connect(tmp_path / "mlflow.db", timeout=60)) as other:
        other.execute("BEGIN EXCLUSIVE")
        train_on(storage, tmp_path, LOCKED_SECONDS)
        other.rollback()
    allow(tmp_path)
    assert running.wait(timeout=300) == 0, err.read_text()
    assert "Traceback" not in err.read_text()
    check(tracking, storage, 30)
    survived("the tracking database locked in mid-search")


@pytest.mark.skipif(NO_POSTGRES is not None, reason=NO_POSTGRES or "")
def test_a_postgresql_restarted_in_mid_search(tmp_path: Path) -> None:
    """MLflow's own tables there, written without a server between."""
    storage, err = tmp_path / "r", tmp_path / "err"
    with postgres(free_port()) as database:
        running = begin(storage, args(database.uri, 30), tmp_path)
        database.stop()
        train_on(storage, tmp_path, LOCKED_SECONDS)
        wait_for(lambda: "are written when MLflow is back" in err.read_text())
        database.start()
        allow(tmp_path)
        assert running.wait(timeout=300) == 0, err.read_text()
        check(database.uri, storage, 30)
        assert database.rows("runs") > 2, "by PostgreSQL's own account"
    said = err.read_text()
    assert "MLflow is back" in said
    assert "Traceback" not in said
    kept = {p: p.read_bytes() for p in storage.rglob("*") if p.is_file()}
    assert not [p for p, content in kept.items() if PASSWORD.encode() in content]
    assert PASSWORD not in said
    survived("the tracking database, a PostgreSQL, stopped in mid-search")


def test_a_study_that_stays_locked_is_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(studies, "LOCKED_SECONDS", 0.2)
    path = tmp_path / "study.db"
    opened = studies.open_study(path, "first", "macro_f1", make_sampler("random", 0))
    with closing(sqlite3.connect(path)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with (
            pytest.raises(Exception, match="database is locked") as caught,
            studies.study_in_one_line(path),
        ):
            opened.set_user_attr("a", 1)
        other.rollback()
    assert "another program has locked it" in str(caught.value)
    opened.set_user_attr("a", 1)
    survived("the study locked longer than it is waited for")
