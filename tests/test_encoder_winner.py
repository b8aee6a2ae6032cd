"""A search over heads on a frozen encoder, and all that can be done with its winner."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import soundfile
import yaml
from mlflow import MlflowClient
from support.audits import few_trees
from support.bundles import save_networks
from support.encoders import save_encoder
from support.instant import search_here, small_spec

from resp_tune import evaluate, predict, train
from resp_tune.cli import run
from resp_tune.encoders.encoder_file import open_encoder
from resp_tune.errors import RunError, UserError
from resp_tune.harness.listeners import without_repeats
from resp_tune.study.study import read_study
from resp_tune.training import bundled_encoder
from resp_tune.training.model_bundle import load_bundle

SPACE = {
    "fixed": {"f_max": 1900.0, "batch_size": 8, "hidden": 4},
    "parameters": {
        "encoder_layer": {"type": "categorical", "values": ["hidden", "last"]},
        "encoder_speed": {"type": "categorical", "values": ["1", "1+2"]},
        "head": {"type": "categorical", "values": ["linear", "mlp"]},
        "pca": {"type": "ordinal", "values": [0, 5]},
    },
}
FLAGS = ("--folds", "2", "--trials", "5", "--replicates", "2", "--epochs", "2")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A finished search whose encoder is no longer at the path that the trials name."""
    root = tmp_path_factory.mktemp("encoder_search")
    encoder = save_encoder(root / "tiny.onnx")
    digest = hashlib.sha256(encoder.read_bytes()).hexdigest()
    encoder.with_suffix(".yaml").write_text("name: Tiny\nlicence: CC0-1.0 <b>\nhop: 0.05\n")
    fixed = {**SPACE["fixed"], "encoder": str(encoder)}
    space = root / "space.yaml"
    space.write_text(yaml.safe_dump({**SPACE, "fixed": fixed}))
    spec = small_spec(root, "--space", str(space), *FLAGS)
    with few_trees():
        summary = json.loads(search_here(spec).read_bytes())
    gone = root / "gone"
    gone.mkdir()
    for file in (encoder, encoder.with_suffix(".yaml")):
        file.rename(gone / file.name)
    return SimpleNamespace(
        root=root, encoder=encoder, digest=digest, spec=spec, summary=summary, gone=gone,
        folder=spec.location.folder, winner=spec.location.folder / "winner",
        uri=spec.location.tracking_uri,
    )  # fmt: skip


def back(done: Any) -> Path:
    """Put the encoder where the trials expect it; the caller removes it again."""
    for file in done.gone.iterdir():
        shutil.copy(file, done.root)
    return done.encoder


def test_the_summary_names_the_encoder(done: Any) -> None:
    expected = {"name": "Tiny", "sha256": done.digest, "licence": "CC0-1.0 <b>"}
    assert done.summary["winner"]["encoder"] == expected
    assert done.summary["trials"]["failed"] == done.summary["trials"]["diverged"] == 0
    assert done.summary["winner"]["params"].keys() == SPACE["parameters"].keys()
    page = (done.folder / "report.html").read_text()
    assert "Tiny" in page
    assert "CC0-1.0 &lt;b&gt;" in page
    assert done.digest[:12] in page


def test_heads_of_both_kinds_have_run(done: Any) -> None:
    trials = pd.read_csv(done.folder / "trials.csv")
    finished = trials[trials["state"] == "finished"]
    assert set(trials["head"]) == {"linear", "mlp"}
    assert set(finished["epochs"]) == {4}, "two epochs of each of two folds"
    replicates = pd.read_csv(done.folder / "replicates.csv")
    assert set(replicates["state"]) == {"finished"}


def test_a_linear_trial_reports_each_step(done: Any) -> None:
    study = read_study(done.folder / "study.db", "small")
    linear = next(
        t for t in study.trials
        if t.user_attrs["config"]["head"] == "linear" and t.state.name == "COMPLETE"
    )  # fmt: skip
    values = [linear.intermediate_values[step] for step in (1, 2, 3, 4)]
    assert values[0] == values[1]
    assert linear.value == values[3] == values[2]


def test_mlflow_knows_the_encoder(done: Any) -> None:
    client = MlflowClient(done.uri)
    experiment = client.get_experiment_by_name("resp_tune")
    runs = client.search_runs([experiment.experiment_id])
    tags = {"resp_tune.encoder": "Tiny", "resp_tune.encoder_sha256": done.digest}
    for kind in ("trial", "replicate", "evaluation"):
        own = [r for r in runs if r.data.tags.get("resp_tune.kind") == kind]
        assert own, kind
        for run_ in own:
            assert run_.data.tags.items() >= tags.items(), kind
            assert run_.data.params["encoder"] == str(done.encoder)
    version = client.get_model_version_by_alias("resp_tune", "champion")
    assert version.tags.items() >= tags.items()
    assert version.tags["resp_tune.encoder_licence"] == "CC0-1.0 <b>"


def predicted(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    capsys.readouterr()
    assert run(predict.main, [*argv, "--json"]) == 0, capsys.readouterr().err
    found: dict[str, Any] = json.loads(capsys.readouterr().out)[0]
    return found


def test_a_prediction_needs_only_the_bundle(done: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """From its folder and from the registry, as the search has predicted the test split."""
    table = pd.read_csv(done.winner / "predictions.csv")
    row = table[table["side"] == "test"].iloc[0]
    wav = next((done.root / "data").rglob(f"{row['recording']}.wav"))
    where = ["--winner", "models:/resp_tune@champion", "--tracking-uri", done.uri]
    for winner in (["--winner", str(done.winner)], where):
        found = predicted(capsys, str(wav), *winner)
        for name, share in found["probabilities"].items():
            assert share == pytest.approx(row[f"p_{name}"], abs=2e-5), winner
        assert found["class"] == row["predicted"]


def test_others_can_serve_it_with_mlflow(done: Any) -> None:
    import mlflow.pyfunc

    bundle = load_bundle(done.winner)
    mlflow.set_tracking_uri(done.uri)
    try:
        model = mlflow.pyfunc.load_model("models:/resp_tune@champion")
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # unsets it
    assert bundle.sample_rate == 16_000
    wave = np.random.default_rng(0).normal(0, 0.1, (2, 16_000)).astype(np.float32)
    import torch

    expected = [bundle.predict_waveform(torch.from_numpy(one)) for one in wave]
    np.testing.assert_allclose(model.predict(wave).to_numpy(), np.stack(expected), atol=1e-6)


def test_spans_of_a_recording_have_their_own_predictions(done: Any) -> None:
    bundle = load_bundle(done.winner)
    import torch

    wave = torch.randn(32_000, generator=torch.Generator().manual_seed(0)) * 0.1
    wave[16_000:] *= 0.01
    each = bundle.predict_spans(wave, [(0.0, 1.0), (1.0, 2.0), (0.0, 1e12)])
    assert each.shape == (3, len(bundle.classes))
    np.testing.assert_allclose(each.sum(1), 1, atol=1e-5)
    assert np.abs(each[0] - each[1]).max() > 1e-4
    np.testing.assert_allclose(each[2], bundle.predict_waveform(wave), atol=1e-6)


def test_evaluate_scores_it_again_the_same(done: Any, capsys: pytest.CaptureFixture[str]) -> None:
    data = str(done.root / "data")
    capsys.readouterr()
    with few_trees():
        code = run(evaluate.main, ["--data", data, "--winner", str(done.winner), "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    scores, test = json.loads(out)["model"]["test"]["by_clip"], done.summary["winner"]["test"]
    for name in ("macro_f1", "log_loss"):
        assert scores[name] == pytest.approx(test[name], abs=1e-6)
    summary = json.loads((done.folder / "summary.json").read_bytes())
    assert len(summary["test_readings"]) == 1, "the same weights on the same recordings"


def test_a_rerun_changes_nothing(done: Any) -> None:
    encoder = back(done)
    try:
        spec = small_spec(done.root, "--space", str(done.root / "space.yaml"), *FLAGS)
        with few_trees():
            again = json.loads(search_here(spec).read_bytes())
        assert again["winner"]["number"] == done.summary["winner"]["number"]
        assert again["winner"]["test"] == done.summary["winner"]["test"]
        encoder.write_bytes(save_encoder(done.root / "other.onnx", seed=1).read_bytes())
        with pytest.raises(UserError, match="was started with other settings: encoder"):
            small_spec(done.root, "--space", str(done.root / "space.yaml"), *FLAGS)
    finally:
        encoder.unlink()
        encoder.with_suffix(".yaml").unlink()


def test_a_trial_is_repeated_by_train(done: Any, capsys: pytest.CaptureFixture[str]) -> None:
    trials = pd.read_csv(done.folder / "trials.csv")
    finished = trials[trials["state"] == "finished"].iloc[0]
    args = [
        "--run", finished["mlflow_run_id"], "--data", str(done.root / "data"),
        "--tracking-uri", done.uri, "--out", str(done.root / "repeated"),
    ]  # fmt: skip
    assert run(train.main, args) == 2
    assert "is not there: give the path of a .tflite or .onnx file" in capsys.readouterr().err
    encoder = back(done)
    try:
        assert run(train.main, args) == 0
        assert "training on cpu, float32, " in capsys.readouterr().err
        epochs = pd.read_csv(done.root / "repeated" / "epochs.csv")
        assert epochs["val_macro_f1"].iloc[-1] == pytest.approx(finished["score"], abs=1e-6)
        assert load_bundle(done.root / "repeated").encoder is not None
        sidecar = encoder.with_suffix(".yaml")
        before = sidecar.read_text()
        sidecar.write_text(f"{before}\nlevel: -33\n")
        capsys.readouterr()
        assert run(train.main, [*args[:-1], str(done.root / "third")]) == 2
        assert "the settings of the encoder" in capsys.readouterr().err
        sidecar.write_text(before)
        shutil.copy(save_encoder(done.root / "other.onnx", seed=1), encoder)
        capsys.readouterr()
        assert run(train.main, [*args[:-1], str(done.root / "third")]) == 2
        assert "has changed since the trial" in capsys.readouterr().err
    finally:
        encoder.unlink()
        encoder.with_suffix(".yaml").unlink()
    assert not (done.root / "third").exists()


def flip(name: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[-3] ^= 1
        (folder / name).write_bytes(data)

    return apply


def change(**values: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text())
        content["encoder"] |= values
        (folder / "config.json").write_text(json.dumps(content))

    return apply


def change_config(**values: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text())
        content["trial_config"] |= values
        (folder / "config.json").write_text(json.dumps(content))

    return apply


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "encoder flipped": (flip("encoder.onnx"), "is damaged: its hash is not the one"),
    "settings flipped": (flip("encoder.yaml"), "is damaged: its hash is not the one"),
    "encoder gone": (lambda f: (f / "encoder.onnx").unlink(), "cannot be read"),
    "settings gone": (lambda f: (f / "encoder.yaml").unlink(), "cannot be read"),
    "another file": (change(file="../../etc/passwd"), "its config names no encoder"),
    "no entry": (change_config(encoder="none"), "do not fit its trial config"),
    "another pool": (change_config(encoder_pool="max"), "do not fit its encoder"),
    "another layer": (change_config(encoder_layer="nowhere"), "is not one of its"),
    "another head": (change_config(head="mlp", hidden=5), "do not fit its trial config"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_bundle_is_refused(
    done: Any, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    copy = shutil.copytree(done.winner, tmp_path / "winner")
    damage(copy)
    with pytest.raises(UserError, match=message) as error:
        load_bundle(copy)
    assert "\n" not in str(error.value)


def test_a_bundle_without_the_library_of_its_encoder_says_what_to_install(
    done: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else found(name)
    )
    with pytest.raises(UserError) as error:
        load_bundle(done.winner)
    assert "needs onnxruntime, not installed here: pip install" in str(error.value)
    assert "save it again" not in str(error.value)


def test_a_bundle_without_an_encoder_replaces_one_with_it(done: Any, tmp_path: Path) -> None:
    """A space may hold both, and the winner after an extension may be of the other kind."""
    from support.toy import CLASSES, toy_config, toy_folds

    from resp_tune.training.loop import Training

    copy = shutil.copytree(done.winner, tmp_path / "winner")
    config = toy_config()
    networks = Training(config, toy_folds(config, 1)).networks()
    save_networks(copy, config, CLASSES, networks, {})
    assert not list(copy.glob("encoder.*"))
    assert load_bundle(copy).encoder is None


def test_an_encoder_that_is_gone_at_the_end_is_to_be_restored(tmp_path: Path) -> None:
    """The trials are done by then, and a rerun has only the winner to save."""
    path = save_encoder(tmp_path / "tiny.onnx")
    encoder = open_encoder(str(path))
    path.unlink()
    with pytest.raises(RunError, match="restore it and rerun the command"):
        bundled_encoder.save_encoder(tmp_path / "winner", encoder)
    assert not (tmp_path / "winner").exists()


def test_cycles_are_cut_at_the_annotations(
    done: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoder = back(done)
    config = {"encoder": str(encoder), "encoder_layer": "hidden", "epochs": 1}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    out = tmp_path / "model"
    args = ["--config", f"{tmp_path}/config.yaml", "--data", str(done.root / "data")]
    try:
        assert run(train.main, [*args, "--task", "cycles", "--out", str(out)]) == 0
    finally:
        encoder.unlink()
        encoder.with_suffix(".yaml").unlink()
    wav = tmp_path / "101_1b1_Al_sc_Meditron.wav"
    soundfile.write(wav, np.random.default_rng(0).standard_normal(8000) * 0.1, 4000)
    wav.with_suffix(".txt").write_text("0.0\t0.7\t0\t1\n0.7\t2.0\t1\t0\n")
    found = predicted(capsys, str(wav), "--winner", str(out))
    assert [(c["start"], c["end"]) for c in found["cycles"]] == [(0.0, 0.7), (0.7, 2.0)]


def test_mlflow_gets_no_repeated_epochs(done: Any) -> None:
    """Of a linear head one for each fold; of all others every epoch."""
    client = MlflowClient(done.uri)
    trials = pd.read_csv(done.folder / "trials.csv")
    for trial in trials[trials["state"] == "finished"].to_dict("records"):
        history = client.get_metric_history(trial["mlflow_run_id"], "val_macro_f1")
        expected = [1, 3] if trial["head"] == "linear" else [1, 2, 3, 4]
        assert sorted(m.step for m in history) == expected
        assert client.get_run(trial["mlflow_run_id"]).data.metrics["macro_f1"] == trial["score"]
    epochs = pd.read_csv(done.folder / "epochs.csv")
    assert set(epochs.groupby("number").size()) <= {1, 2, 3, 4}
    repeated = without_repeats(
        [{"epoch": 1, "x": 1.0}, {"epoch": 2, "x": 1.0}, {"epoch": 3, "x": 2}]
    )
    assert [row["epoch"] for row in repeated] == [1, 3]
