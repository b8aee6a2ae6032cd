"""Whole searches on an object store: killed, continued elsewhere, cut off, two at once."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
from optuna.trial import TrialState
from support.gates import allow, epochs_done, gated
from support.object_store import ObjectStore, WiredStore
from support.searches import Outcome, command, files_below, start, study, trials, wait_for

from resp_tune.cli import run
from resp_tune.errors import RunError
from resp_tune.harness import remote_sync as mirrors
from resp_tune.harness.remote_sync import synchronize_storage
from resp_tune.search import main
from resp_tune.storage.lease import LEASE
from resp_tune.study.samplers import make_sampler
from resp_tune.study.study import open_study

EPOCHS = 10
TRIALS = 3
LAST = TRIALS - 1


@dataclass(frozen=True)
class Machine:
    """A home, a cache folder and a current folder; the data and MLflow are shared."""

    folder: Path
    store: ObjectStore

    @property
    def env(self) -> dict[str, str]:
        self.folder.mkdir(exist_ok=True)
        shared = self.folder.parent
        return {
            "HOME": str(self.folder),
            "RESP_TUNE_CACHE": str(self.folder / "cache"),
            "RESP_TUNE_DATA": str(shared / "data"),
            "MLFLOW_TRACKING_URI": f"sqlite:///{shared / 'mlflow.db'}",
            **gated(shared),
        }

    @property
    def storage(self) -> Path:
        return self.store.copy_on(self.folder / "cache", "")

    def args(self, name: str) -> tuple[str, ...]:
        return (
            "--storage", self.store.uri, "--name", name, "--gpus", "0", "--scheduler", "none",
            "--space", str(Path("search_spaces/smoke.yaml").absolute()),
            "--concurrency", "2", "--epochs", str(EPOCHS), "--trials", str(TRIALS),
        )  # fmt: skip

    def search(self, name: str) -> Outcome:
        return command("search", *self.args(name), env=self.env, cwd=self.folder)


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    made = command("synth", str(tmp_path / "data"), "--recordings", "60", "--seconds", "2")
    assert made.code == 0, made.err
    return tmp_path


def check(machine: Machine, name: str) -> None:
    """Every trial once, in the study, in MLflow, in the storage and in the machine's copy of it."""
    told = study(machine.storage, name).get_trials()
    assert [t.number for t in told] == list(range(TRIALS))
    assert {t.state for t in told} == {TrialState.COMPLETE}
    assert [sorted(t.intermediate_values) for t in told] == [list(range(1, EPOCHS + 1))] * TRIALS
    table = trials(machine.storage, name)
    assert list(table["score"]) == pytest.approx([t.value for t in told])
    client = mlflow.MlflowClient(machine.env["MLFLOW_TRACKING_URI"])
    experiment = client.get_experiment_by_name("resp_tune")
    assert experiment is not None
    query = f"tags.`resp_tune.search` = '{name}'"
    runs = client.search_runs([experiment.experiment_id], query)
    kinds = [r.data.tags["resp_tune.kind"] for r in runs]
    assert {k: kinds.count(k) for k in kinds} == {"search": 1, "trial": TRIALS, "evaluation": 1}
    assert {r.info.status for r in runs} == {"FINISHED"}
    for found in runs:
        if found.data.tags["resp_tune.kind"] == "trial":
            steps = [m.step for m in client.get_metric_history(found.info.run_id, "val_loss")]
            assert sorted(steps) == list(range(1, EPOCHS + 1)), "each epoch once"
    there = machine.store.files(name)
    here = {n for n in files_below(machine.storage / name) if not n.startswith(".")}
    assert {n for n in here if (machine.storage / name / n).is_file()} <= there
    assert {f"trials/{n}/checkpoint.pt" for n in range(TRIALS)} <= there
    assert {"study.db", "summary.json", "report.html", "winner/weights.safetensors"} <= there
    assert {n for n in there if n.startswith(".") or ".part" in n} == {LEASE}
    assert json.loads(machine.store.prefix_path.read(f"{name}/{LEASE}") or b"{}")["released"]
    prefix_path = machine.store.prefix_path / name
    assert (
        prefix_path.read("summary.json") == (machine.storage / name / "summary.json").read_bytes()
    )


def ended(store: ObjectStore, scratch: Path) -> int:
    """Trials that have ended, as the store knows it."""
    assert (store.prefix_path / "moved").fetch(
        "study.db", scratch / "fetched" / "moved" / "study.db"
    )
    told = study(scratch / "fetched", "moved").get_trials()
    return sum(t.state == TrialState.COMPLETE for t in told)


def last_waits(shared: Path) -> bool:
    """Whether the last trial has done its five epochs, and the others have ended."""
    return len(epochs_done(shared)) >= (TRIALS - 1) * EPOCHS + 5


@pytest.mark.slow
def test_killed_and_continued_on_another_machine(store: ObjectStore, shared: Path) -> None:
    first, second = Machine(shared / "one", store), Machine(shared / "two", store)
    allow(shared, of_one=5, trial=LAST)
    running = start("search", *first.args("moved"), env=first.env)
    # Two trials have ended, and the third has a checkpoint of its midst.
    wait_for(lambda: last_waits(shared), 400)
    wait_for(lambda: "trials/2/checkpoint.pt" in store.files("moved"))
    wait_for(lambda: ended(store, shared) == 2)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    shutil.copytree(first.storage, shared / "left")  # what the dead machine had
    before = study(shared / "left", "moved").get_trials()
    assert [t.state for t in before] == [TrialState.COMPLETE] * 2 + [TrialState.RUNNING]
    shutil.rmtree(first.folder)
    allow(shared)
    outcome = second.search("moved")
    assert outcome.code == 0, outcome.err
    assert "resuming: 2 trials have ended already; 1 were interrupted" in outcome.err
    assert outcome.lines[-1] == str(second.storage / "moved" / "summary.json")
    assert f"everything is at {store.prefix_path / 'moved'}" in outcome.err
    check(second, "moved")
    after = study(second.storage, "moved").get_trials()
    assert [t.value for t in after[:2]] == [t.value for t in before[:2]]
    assert [t.params for t in after] == [t.params for t in before]
    done = epochs_done(shared)
    assert len(set(done)) == EPOCHS * TRIALS
    assert len(done) - len(set(done)) < 5, "the third went on from its checkpoint"
    sound = next((shared / "data").rglob("*.wav"))
    winner = store.uri.replace("?", "/moved/winner?")
    told = command("predict", "--winner", winner, "--json", str(sound), env=second.env)
    same = command(
        "predict", "--winner", str(second.storage / "moved/winner"), "--json", str(sound)
    )
    assert (told.code, told.out) == (0, same.out), told.err
    (store.prefix_path / "moved").remove("report.html")
    page = command("report", "moved", "--storage", store.uri, env=second.env)
    assert (page.code, page.lines) == (0, [f"{store.prefix_path}/moved/report.html"]), page.err
    assert b"</html>" in (store.prefix_path / "moved").read("report.html")


@pytest.mark.thorough
def test_cut_off_from_its_store_and_asked_for_by_another(store: WiredStore, shared: Path) -> None:
    machine, other = Machine(shared / "one", store), Machine(shared / "two", store)
    err = shared / "err"
    allow(shared, of_all=2)
    running = start("search", *machine.args("cut"), env=machine.env, err=err)
    wait_for(lambda: len(epochs_done(shared)) >= 2, 400)
    refused = other.search("cut")
    assert refused.code == 2
    assert f"is being run by process {running.pid} on " in refused.err
    assert not (other.storage / "cut" / "study.db").exists()
    store.wire.cut()
    try:
        allow(shared, of_one=5, trial=LAST)
        wait_for(lambda: last_waits(shared), 400)
        wait_for(lambda: "the search continues, and what is missing" in err.read_text())
    finally:
        store.wire.mend()
        allow(shared)
    assert running.wait(timeout=400) == 0, err.read_text()
    said = err.read_text()
    assert said.count("the search continues, and what is missing") == 1
    assert "the storage is back" in said
    assert "Traceback" not in said
    assert "failed" not in said
    check(machine, "cut")


@pytest.mark.slow
def test_away_at_the_end_is_a_line_and_the_same_command_sends_it(
    said: list[str], store: WiredStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirrors, "PATIENCE_SECONDS", 1.0)
    monkeypatch.setattr(mirrors, "LEAVING_SECONDS", 1.0)
    prefix_path = store.prefix_path / tmp_path.name / "late"
    spec: Any = SimpleNamespace(remote=prefix_path, folder=tmp_path / "late")
    spec.folder.mkdir()
    made = open_study(spec.folder / "study.db", "late", "macro_f1", make_sampler("random", 0))
    (spec.folder / "winner").mkdir()
    (spec.folder / "winner" / "config.json").write_text("{}")
    with synchronize_storage(spec) as sync:
        sync.opened(made)
        sync.record("the test set is evaluated")
        store.wire.cut()
        try:
            with pytest.raises(RunError, match="must be recorded there before the test set"):
                sync.record("the test set is evaluated")
            with pytest.raises(RunError, match="so not every file of the search is there"):
                sync.complete()
        finally:
            store.wire.mend()
        assert (prefix_path / "winner").list_sizes() == {}
    with synchronize_storage(spec) as sync:
        sync.opened(made)
        sync.complete()
        assert set(prefix_path.list_sizes()) == {"study.db", "winner/config.json", ".lease"}
    assert json.loads(prefix_path.read(LEASE) or b"{}")["released"]
    assert f"everything is at {prefix_path}, and on this machine in {spec.folder}" in said


_HOLDS = """
import sys, time
from pathlib import Path
from types import SimpleNamespace
from resp_tune import cli
from resp_tune.harness.signals import handle_interrupts
from resp_tune.harness.remote_sync import synchronize_storage
from resp_tune.storage import lease
from resp_tune.storage.object_store import ObjectPath
lease.BEAT_SECONDS = 0.5
uri, below, folder = sys.argv[1:]
def body(_):
    search = SimpleNamespace(remote=ObjectPath(uri, below), folder=Path(folder))
    with handle_interrupts("rerun it"), synchronize_storage(search):
        print("holds", flush=True)
        time.sleep(120)
sys.exit(cli.run(body, []))
"""


def test_a_driver_that_is_taken_over_stops_as_if_interrupted(
    store: ObjectStore, tmp_path: Path
) -> None:
    prefix_path = store.prefix_path / tmp_path.name / "first"
    given = [sys.executable, "-c", _HOLDS, prefix_path.uri, prefix_path.prefix, str(tmp_path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(given, stdout=pipe, stderr=pipe, text=True) as driver:
        try:
            assert driver.stdout is not None
            assert driver.stdout.readline() == "holds\n"
            theirs = json.dumps({"id": "another", "holder": "process 7 on other", "beat": 0})
            prefix_path.write(theirs.encode(), LEASE)
            _, err = driver.communicate(timeout=100)
        finally:
            driver.kill()
    assert driver.returncode == 130
    assert "was taken over by process 7 on other: this driver was silent" in err
    assert "rerun it" in err
    assert prefix_path.read(LEASE) == theirs.encode(), "it is not given back"


SMOKE = ("--space", "search_spaces/smoke.yaml", "--epochs", "1", "--gpus", "0")


@pytest.mark.parametrize(
    ("storage", "tracking", "said"),
    [
        ("s3://nobodys/p?endpoint_override={}", True, "create that bucket"),
        ("s3://sounds/p?endpoint_override={}", False, "give --tracking-uri"),
        ("hdfs://sounds/p", True, "not the URI of a supported object store"),
        ("s3:/sounds/p", True, "names no bucket"),
    ],
)
def test_a_wrong_storage_gets_one_line(
    store: ObjectStore,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    storage: str,
    tracking: bool,
    said: str,
) -> None:
    given = ["--storage", storage.format(store.endpoint), *SMOKE]
    given += ["--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db"] if tracking else []
    assert run(main, given) == 2
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert said in errors[0]
    assert out == ""
    assert files_below(tmp_path) == set()


@pytest.mark.parametrize(
    ("module", "arguments", "said"),
    [
        ("predict", ["--winner", "{uri}", "x.wav"], "it lacks config.json or weights.safetensors"),
        ("evaluate", ["--winner", "{uri}"], "must be a local folder"),
        ("evaluate", ["--compare", "{uri}", "results/a"], "must be a local folder"),
        ("report", ["none", "--storage", "{uri}"], "has no summary.json"),
        ("ui", ["--storage", "{uri}"], "give the --tracking-uri"),
    ],
)
def test_other_commands_say_in_one_line_what_they_need(
    store: ObjectStore,
    capsys: pytest.CaptureFixture[str],
    module: str,
    arguments: list[str],
    said: str,
) -> None:
    entry = importlib.import_module(f"resp_tune.{module}").main
    assert run(entry, [a.format(uri=store.uri) for a in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1
    assert "endpoint_override=" not in err


def test_a_dry_run_leaves_nothing(
    store: ObjectStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--storage", store.uri, *SMOKE, "--name", "dry", "--dry-run"]
    assert run(main, [*given, "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db"]) == 0
    assert f"dry → {store.prefix_path}/dry" in capsys.readouterr().out
    assert store.files("dry") == set()
    assert not [name for name in store.files("") if "probe" in name]
    assert files_below(tmp_path) == set()
    assert not store.prefix_path.local_copy.exists()
