"""Searches whose winner is the mean of the best trials: of heads on an encoder, and of networks."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from mlflow import MlflowClient
from sklearn.metrics import balanced_accuracy_score
from support.audits import few_trees
from support.encoders import save_encoder
from support.instant import search_here, small_spec

from resp_tune import evaluate, predict
from resp_tune.audit.model import rebuild_datamodule
from resp_tune.cli import run
from resp_tune.evaluation.score import score_test_split
from resp_tune.harness.console import describe_result
from resp_tune.harness.validate import open_dataset
from resp_tune.training.datamodule import make_feature_caches
from resp_tune.training.model_bundle import load_bundle

HEADS = {
    "f_max": {"type": "ordinal", "values": [1000.0, 1900.0]},
    "encoder_layer": {"type": "categorical", "values": ["hidden", "last"]},
    "encoder_speed": {"type": "categorical", "values": ["1", "1+2"]},
    "head": {"type": "categorical", "values": ["linear", "mlp"]},
}
NETWORKS = {
    "n_mels": {"type": "categorical", "values": [8, 16]},
    "normalise": {"type": "categorical", "values": ["none", "clip"]},
}
FLAGS = ("--folds", "2", "--trials", "5", "--epochs", "1", "--metric", "balanced_accuracy")


@pytest.fixture(scope="module", params=["heads", "networks"])
def done(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A finished search with an ensemble of three."""
    root = tmp_path_factory.mktemp(request.param)
    if request.param == "heads":
        fixed: dict[str, Any] = {"encoder": str(save_encoder(root / "tiny.onnx"))}
        fixed |= {"batch_size": 8, "hidden": 4}
    else:
        fixed = {"channels": 2, "width": 4, "depth": 2, "clip_seconds": 1.0, "batch_size": 8}
    parameters = HEADS if request.param == "heads" else NETWORKS
    space = root / "space.yaml"
    space.write_text(yaml.safe_dump({"fixed": fixed, "parameters": parameters}))

    def search(members: int) -> dict[str, Any]:
        flags = ("--space", str(space), *FLAGS, "--ensemble", str(members))
        spec = small_spec(root, *flags)
        with few_trees():
            found: dict[str, Any] = json.loads(search_here(spec).read_bytes())
        return found

    summary = search(3)
    folder = small_spec(root, "--space", str(space), *FLAGS).location.folder
    return SimpleNamespace(root=root, folder=folder, summary=summary, search=search)


def best(done: Any, count: int) -> list[int]:
    trials = pd.read_csv(done.folder / "trials.csv")
    finished = trials[trials["state"] == "finished"]
    ordered = finished.sort_values(["score", "number"], ascending=[False, True])
    return [int(number) for number in ordered["number"][:count]]


def probabilities(table: pd.DataFrame) -> np.ndarray:
    columns = [name for name in table.columns if name.startswith("p_")]
    values: np.ndarray = table.sort_values(["recording", "start"])[columns].to_numpy()
    return values


def test_the_best_trials_are_its_members(done: Any) -> None:
    winner, numbers = done.summary["winner"], best(done, 3)
    assert [m["number"] for m in winner["ensemble"]] == numbers
    assert (winner["number"], winner["params"]) == (numbers[0], winner["ensemble"][0]["params"])
    trials = pd.read_csv(done.folder / "trials.csv").set_index("number")
    for member in winner["ensemble"]:
        assert member["score"] == pytest.approx(trials.loc[member["number"], "score"])
    provenance = json.loads((done.folder / "winner" / "config.json").read_bytes())["provenance"]
    assert provenance["ensemble"] == numbers
    assert len({str(m["params"]) for m in winner["ensemble"]}) > 1, "or averaging shows nothing"


def test_it_predicts_the_mean_of_its_members(done: Any) -> None:
    """On validation, where each trial's own predictions are on disk."""
    table = pd.read_csv(done.folder / "winner" / "predictions.csv")
    own = probabilities(table[table["side"] == "validation"])
    each = [
        probabilities(pd.read_csv(done.folder / "trials" / str(number) / "predictions.csv"))
        for number in best(done, 3)
    ]
    np.testing.assert_allclose(own, np.mean(each, axis=0), atol=2e-6)
    assert np.abs(own - each[0]).max() > 1e-3


def test_its_validation_metrics_are_those_of_the_mean(done: Any) -> None:
    table = pd.read_csv(done.folder / "winner" / "predictions.csv").set_index("recording")
    folds = json.loads((done.folder / "split.json").read_bytes())["folds"]
    scores = []
    for fold in folds:
        rows = table[table["side"] == "validation"].loc[fold["validation"]]
        scores.append(balanced_accuracy_score(rows["label"], rows["predicted"]))
    found = done.summary["winner"]["validation"]
    assert found["balanced_accuracy"] == pytest.approx(np.mean(scores))
    assert found.keys() >= {"macro_f1", "patient_macro_f1", "balanced_log_loss"}


def test_the_price_is_of_the_best_trial(done: Any) -> None:
    """An average of networks would hide some of it, so the best trial counts alone."""
    price = done.summary["winner"]["price_of_searching"]
    scores = [m["score"] for m in done.summary["winner"]["ensemble"]]
    assert price["best_validation"] == pytest.approx(max(scores))
    bundle = load_bundle(done.folder / "winner")
    data = rebuild_datamodule(bundle, open_dataset(str(done.root / "data")))
    caches = make_feature_caches(data, data.split.test or (), 1)
    alone = score_test_split(dataclasses.replace(bundle, others=()), data, caches, workers=1)
    assert price["test"] == pytest.approx(alone.metrics["balanced_accuracy"])
    assert done.summary["winner"]["test"]["by_seed"] is None
    assert "(its best trial alone)" in "\n".join(describe_result(done.summary, done.folder))


def test_a_prediction_of_a_file_is_that_of_the_search(
    done: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    table = pd.read_csv(done.folder / "winner" / "predictions.csv")
    row = table[table["side"] == "test"].iloc[0]
    wav = next((done.root / "data").rglob(f"{row['recording']}.wav"))
    capsys.readouterr()
    code = run(predict.main, [str(wav), "--winner", str(done.folder / "winner"), "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    for name, share in json.loads(out)[0]["probabilities"].items():
        assert share == pytest.approx(row[f"p_{name}"], abs=2e-5)


@pytest.mark.parametrize("where", ["folder", "registry"])
def test_evaluate_scores_it_again_the_same(
    where: str, done: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    winner = [str(done.folder / "winner")]
    if where == "registry":
        uri = done.summary["mlflow"]["tracking_uri"]
        winner = ["models:/resp_tune@champion", "--tracking-uri", uri]
    argv = ["--data", str(done.root / "data"), "--json", "--winner", *winner]
    capsys.readouterr()
    with few_trees():
        code = run(evaluate.main, argv)
    out, err = capsys.readouterr()
    assert code == 0, err
    scores = json.loads(out)["model"]["test"]["by_clip"]
    for name in ("macro_f1", "log_loss"):
        assert scores[name] == pytest.approx(done.summary["winner"]["test"][name], abs=1e-6)


def test_the_registry_holds_all_of_it(done: Any) -> None:
    import mlflow.pyfunc
    import torch

    uri = done.summary["mlflow"]["tracking_uri"]
    client, numbers = MlflowClient(uri), ", ".join(map(str, best(done, 3)))
    experiment = client.get_experiment_by_name("resp_tune")
    kind = "tags.`resp_tune.kind` = 'evaluation'"
    evaluations = client.search_runs([experiment.experiment_id], kind)
    (evaluation,) = (e for e in evaluations if e.data.params.get("ensemble") == numbers)
    digest = load_bundle(done.folder / "winner").details["weights_sha256"]
    version = client.get_model_version_by_alias("resp_tune", "champion")
    assert evaluation.data.tags["resp_tune.weights_sha256"] == digest
    assert version.tags["resp_tune.weights_sha256"] == digest
    mlflow.set_tracking_uri(uri)
    try:
        model = mlflow.pyfunc.load_model("models:/resp_tune@champion")
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # unsets it
    bundle = load_bundle(done.folder / "winner")
    wave = np.random.default_rng(0).normal(0, 0.1, (1, 2 * bundle.sample_rate)).astype(np.float32)
    expected = bundle.predict_waveform(torch.from_numpy(wave[0]))
    np.testing.assert_allclose(model.predict(wave).to_numpy()[0], expected, atol=1e-6)


def test_terminal_and_report_name_the_members(done: Any) -> None:
    numbers = ", ".join(map(str, best(done, 3)))
    lines = "\n".join(describe_result(done.summary, done.folder))
    assert f"winner: the mean of 3 trials, {numbers}; the best is trial {best(done, 1)[0]}" in lines
    page = (done.folder / "report.html").read_text()
    assert "The winner: an ensemble of 3 trials" in page
    assert f"the mean of the predictions of trials {numbers}." in page


def test_another_size_is_another_access_to_the_test_split(done: Any) -> None:
    again = done.search(3)
    assert again["winner"]["test"] == done.summary["winner"]["test"]
    assert len(again["test_readings"]) == 1
    alone = done.search(1)
    assert (alone["winner"]["ensemble"], len(alone["test_readings"])) == (None, 2)
    assert len(list((done.folder / "winner").glob("*.safetensors"))) == 1
    assert done.search(3)["winner"]["test"] == done.summary["winner"]["test"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--ensemble", "0"], "--ensemble"),
        (["--ensemble", "x"], "--ensemble"),
        (["--ensemble", "5", "--replicates", "2"], "--ensemble 5 needs more trials than the 4"),
    ],
)
def test_a_wrong_size_is_refused(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from resp_tune import search

    code = run(search.main, ["--storage", str(tmp_path / "results"), "--gpus", "0", *flags])
    err = capsys.readouterr().err
    assert code == 2
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "results").exists()
