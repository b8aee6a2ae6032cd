"""The main job from end to end: the command, its files, the study, MLflow, the winner."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import mlflow
import numpy as np
import pytest
import soundfile
from optuna.trial import TrialState
from support.fault_log import survived
from support.searches import command, files_below, search, study, summary, trials

from resp_tune.cli import run
from resp_tune.search import main

SMOKE = ("--space", "search_spaces/smoke.yaml", "--epochs", "1", "--gpus", "0")
FIXED_COLUMNS = ["number", "state", "score", "epochs", "seconds", "seed", "mlflow_run_id"]


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def finished(storage: Path) -> Path:
    """A whole search of two trials, run once for this module."""
    elsewhere = storage.parent / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    outcome = search(storage, *SMOKE, "--trials", "2", "--name", "first", cwd=elsewhere, cold=True)
    assert outcome.code == 0, outcome.err
    assert outcome.lines[-1] == str(storage / "first" / "summary.json")
    assert "SYNTHETIC" in outcome.out
    assert "Traceback" not in outcome.err
    assert files_below(elsewhere) == set(), "nothing may be written into the current folder"
    return storage


@pytest.mark.smoke
def test_a_search_leaves_all_its_files(finished: Path) -> None:
    folder = finished / "first"
    expected = {"winner", "trials.csv", "epochs.csv", "study.db", "split.json", "summary.json"}
    assert expected | {"report.html"} <= files_below(folder)
    found = summary(finished, "first")
    assert found["trials"] == {"finished": 2, "pruned": 0, "diverged": 0, "failed": 0}
    assert found["leaks"] == {"patients": 0, "sessions": 0}
    assert len(found["test_readings"]) == 1
    assert found["test_readings"][0]["winner_number"] == found["winner"]["number"]
    test = found["winner"]["test"]
    low, high = test["intervals"]["macro_f1"]
    assert 0 <= low <= test["macro_f1"] <= high <= 1
    assert {"device", "all", "audio_linear", "majority_accuracy"} <= found["baselines"].keys()
    assert found["seconds"]["total"] > found["seconds"]["training"] > 0
    table = trials(finished, "first")
    assert list(table.columns) == [*FIXED_COLUMNS, "dropout", "lr"]
    best = table.loc[table["score"].idxmax()]
    assert best["number"] == found["winner"]["number"]
    assert best["score"] == pytest.approx(found["winner"]["validation"]["macro_f1"])


def test_trial_0_is_the_baseline(finished: Path) -> None:
    first = trials(finished, "first").set_index("number").loc[0]
    assert (first["dropout"], first["lr"]) == (0.25, 3e-3)


def test_the_study_and_mlflow_tell_the_same_story(finished: Path) -> None:
    told = study(finished, "first").get_trials()
    assert [t.state for t in told] == [TrialState.COMPLETE] * 2
    client = mlflow.MlflowClient(f"sqlite:///{finished / 'mlflow.db'}")
    found = summary(finished, "first")["mlflow"]
    runs = client.search_runs([found["experiment_id"]])
    kinds = sorted(r.data.tags["resp_tune.kind"] for r in runs)
    assert kinds == ["evaluation", "search", "trial", "trial"]
    by_id = {r.info.run_id: r for r in runs}
    for row in trials(finished, "first").itertuples():
        run = by_id[row.mlflow_run_id]
        assert run.info.status == "FINISHED"
        assert run.data.tags["resp_tune.state"] == "finished"
        assert run.data.tags["mlflow.parentRunId"] == found["parent_run_id"]
        assert int(run.data.tags["resp_tune.trial_number"]) == row.number
        assert run.data.metrics["val_macro_f1"] == pytest.approx(row.score)
        assert told[row.number].value == pytest.approx(row.score)
        assert not any(m.startswith("test_") for m in run.data.metrics)
    model = client.get_model_version_by_alias("resp_tune", "champion")
    assert str(model.version) == str(found["version"])


def test_the_winner_diagnoses_a_new_recording(finished: Path, tmp_path: Path) -> None:
    sound = tmp_path / "breath.flac"
    noise = np.random.default_rng(0).normal(0, 0.1, (48_000 * 3, 2))
    soundfile.write(sound, noise, 48_000, "PCM_24")
    bad = tmp_path / "no.wav"
    bad.write_bytes(b"RIFF")
    uri = f"sqlite:///{finished / 'mlflow.db'}"
    champion = command("predict", "--json", str(sound), str(bad), "--tracking-uri", uri)
    assert champion.code == 1
    assert champion.err.count("no.wav") == 1
    (told,) = json.loads(champion.out)
    assert told["file"] == str(sound)
    assert sum(told["probabilities"].values()) == pytest.approx(1, abs=1e-3)
    assert told["class"] == max(told["probabilities"], key=told["probabilities"].get)
    folder = command("predict", "--json", str(sound), "--winner", str(finished / "first/winner"))
    assert folder.code == 0
    assert json.loads(folder.out) == [told]
    assert command("predict", str(bad), "--tracking-uri", uri).code == 2


def test_a_trial_runs_again_to_the_same_score(finished: Path) -> None:
    row = trials(finished, "first").iloc[1]
    uri = f"sqlite:///{finished / 'mlflow.db'}"
    outcome = command("train", "--run", row["mlflow_run_id"], "--tracking-uri", uri)
    assert outcome.code == 0, outcome.err
    score = float(outcome.out.split("macro_f1 ")[-1].split()[0])
    assert score == pytest.approx(row["score"], abs=5e-5)  # four digits are printed


@pytest.mark.slow
def test_the_same_name_extends_and_repeats_nothing(finished: Path, tmp_path: Path) -> None:
    finished = shutil.copytree(finished, tmp_path / "copy")
    before = trials(finished, "first")
    outcome = search(finished, *SMOKE, "--trials", "3", "--name", "first")
    assert outcome.code == 0, outcome.err
    after = trials(finished, "first")
    assert len(after) == 3
    assert after.iloc[:2].equals(before), "finished trials stand as they were"
    client = mlflow.MlflowClient(f"sqlite:///{finished / 'mlflow.db'}")
    experiment = summary(finished, "first")["mlflow"]["experiment_id"]
    runs = client.search_runs([experiment], "tags.`resp_tune.kind` = 'trial'")
    assert len(runs) == 3
    other = search(finished, *SMOKE[:2], "--epochs", "2", "--trials", "4", "--name", "first")
    assert other.code == 2
    assert "epochs was 1, now 2" in other.err
    assert len(trials(finished, "first")) == 3


def test_dry_run_says_the_plan_and_writes_nothing(tmp_path: Path) -> None:
    outcome = search(tmp_path / "r", *SMOKE, "--dry-run", "--trials", "7", "--name", "dry")
    assert outcome.code == 0, outcome.err
    assert "7 trials of 1 epoch, " in outcome.out
    assert "1 front end, filled before the search" in outcome.out
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data", "{tmp}"], "no recordings"),
        (["--data", "{tmp}/nothing"], "nothing"),
        (["--trails", "3"], "did you mean '--trials'?"),
        (["--trials", "0"], "at least 1"),
        (["--task", "diagnosys"], "did you mean 'diagnosis'?"),
        (["--scheduler", "hyperband"], "choose asha or none"),
        (["--sampler", "grid"], "tpe"),
        (["--space", "{tmp}/none.yaml"], "none.yaml"),
        (["--gpus", "4"], "no GPU"),
        (["--name", "../up"], "not a name"),
        (["--name", "x" * 300], "not a name"),
        (["--tracking-uri", "http://127.0.0.1:9"], "127.0.0.1:9"),
        (["--address", "nonsense"], "HOST:PORT"),
        (["--address", "127.0.0.1:9"], "nothing answers"),
        (["--wait-for-gpus", "10m"], "give --address"),
        (["--replicates", "0"], "from 1 to 100"),
        (["--protocol", "official"], "cycles"),
        (["--config", "{tmp}/none.yaml"], "none.yaml"),
        (["--time-budget", "soon"], "30m"),
        (["--concurrency", "2", "--cpus-per-trial", "999"], "999"),
        (["--metric", "icbhi_score"], "cycles"),
    ],
)
def test_a_wrong_input_gets_one_line(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [a.format(tmp=tmp_path) for a in arguments]
    # In this process, or every case would pay for importing torch.
    assert run(main, ["--storage", str(tmp_path / "r"), *given]) == 2
    out, err = capsys.readouterr()
    errors = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert said in errors[0]
    assert out == ""
    assert files_below(tmp_path) == set()


@pytest.mark.thorough
def test_four_logical_gpus_run_four_trials_at_once(tmp_path: Path) -> None:
    args = ("--space", "search_spaces/smoke.yaml", "--epochs", "8", "--scheduler", "none")
    outcome = search(
        tmp_path, *args, "--gpus", "4", "--trials", "4", "--name", "four",
        env={"RESP_TUNE_LOGICAL_GPUS": "1"},
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    told = study(tmp_path, "four").get_trials()
    assert len(told) == 4
    last_start = max(t.datetime_start for t in told if t.datetime_start)
    first_end = min(t.datetime_complete for t in told if t.datetime_complete)
    assert last_start < first_end, "the four trials must overlap"


@pytest.mark.slow
def test_a_diverging_trial_is_told_as_diverged_and_a_poor_one_as_pruned(tmp_path: Path) -> None:
    space = tmp_path / "wild.yaml"
    # AdamW with lr · weight_decay = 100 multiplies the weights by −99 at every step.
    space.write_text(
        "fixed: {n_mels: 32, width: 4, clip_seconds: 4.0}\n"
        "parameters:\n"
        "  weight_decay: {type: ordinal, values: [0.01, 10.0]}\n"
        "  lr: {type: ordinal, values: [0.0000001, 0.003, 10.0]}\n"
    )
    outcome = search(
        tmp_path, "--space", str(space), "--trials", "10", "--epochs", "4", "--sampler", "random",
        "--concurrency", "1", "--name", "wild",  # with two, what ASHA stops depends on the timing
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    table = trials(tmp_path, "wild")
    exploding = (table["lr"] == 10.0) & (table["weight_decay"] == 10.0)
    assert exploding.any(), "this seed must draw the corner that the test is about"
    assert set(table.loc[exploding, "state"]) == {"diverged"}
    told = {t.number: t for t in study(tmp_path, "wild").get_trials()}
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    for row in table.itertuples():
        trial, run = told[row.number], client.get_run(row.mlflow_run_id)
        if row.state == "diverged":
            assert (trial.state, trial.value) == (TrialState.COMPLETE, 0.0)
            assert math.isnan(row.score)
            assert run.info.status == "FAILED"
        if row.state == "pruned":
            assert trial.state == TrialState.PRUNED
            assert 0 < row.epochs < 4
            assert len(trial.intermediate_values) == row.epochs
            assert run.info.status == "KILLED"
        assert run.data.tags["resp_tune.state"] == row.state
    assert (table["state"] == "pruned").any(), "ASHA must have stopped some"
    survived("a loss that is not finite", times=int(exploding.sum()))
