"""`evaluate --blend`: the mean of two winners' saved predictions, weighted by validation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from support.searches import files_below

from resp_tune import evaluate
from resp_tune.cli import run
from resp_tune.evaluation.blend import blend
from resp_tune.training.metrics import all_metrics, pool

CLASSES = ("COPD", "Healthy", "URTI")


def predictions(seed: int, knows: int, sides: tuple[str, ...] = ("validation", "test")) -> Any:
    """Predictions of a winner that tells the class `knows` from others; clips of 20 patients."""
    parts = []
    for place, side in enumerate(sides):
        patients = np.repeat(np.arange(20) + 100 * (place + 1), 3)
        labels = patients % 3
        p = np.random.default_rng(seed + place).dirichlet(np.ones(3), len(labels))
        p[:, knows] += 0.8 * (labels == knows)
        p = (p / p.sum(1, keepdims=True)).round(6)
        stems = [f"{patient}_{n % 3}b1_Al_sc_Meditron" for n, patient in enumerate(patients)]
        known = {"side": side, "recording": stems, "patient": patients.astype(str), "start": 0.0}
        named = {"label": np.array(CLASSES)[labels], "predicted": np.array(CLASSES)[p.argmax(1)]}
        columns = {f"p_{name}": p[:, i] for i, name in enumerate(CLASSES)}
        parts.append(pd.DataFrame({**known, **named, **columns}))
    return pd.concat(parts, ignore_index=True)


def save(frame: pd.DataFrame, folder: Path, **provenance: Any) -> str:
    winner = folder / "winner"
    winner.mkdir(parents=True)
    frame.to_csv(winner / "predictions.csv", index=False)
    (winner / "config.json").write_text(json.dumps({"provenance": provenance}))
    return str(folder)


def probabilities(frame: pd.DataFrame, side: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    own = frame[frame["side"] == side]
    labels = own["label"].map(CLASSES.index).to_numpy()
    return labels, own[[f"p_{c}" for c in CLASSES]].to_numpy(), own["patient"].to_numpy()


@pytest.fixture
def two(tmp_path: Path) -> tuple[str, str]:
    score = {"patient_macro_f1": 0.5}
    a = save(predictions(0, 0), tmp_path / "one", split_sha256="same", score=score)
    return a, save(predictions(10, 1), tmp_path / "two", split_sha256="same", score=score)


def test_the_weight_is_the_best_on_validation(two: tuple[str, str]) -> None:
    found = blend(*two)
    assert found["metric"] == "patient_macro_f1"
    (labels, a, patients), (_, b, _) = (
        probabilities(pd.read_csv(Path(f, "winner", "predictions.csv")), "validation") for f in two
    )
    groups = {"patient": np.unique(patients, return_inverse=True)[1]}

    def score(weight: float) -> float:
        mixed = weight * a + (1 - weight) * b
        return all_metrics(labels, mixed, CLASSES, groups)["patient_macro_f1"]

    best = max(score(step / 20) for step in range(21))
    assert found["validation"]["blend"] == pytest.approx(best)
    assert found["validation"]["blend"] == pytest.approx(score(found["weights"]["a"]))
    assert found["weights"]["a"] + found["weights"]["b"] == pytest.approx(1)
    assert best > max(found["validation"]["a"], found["validation"]["b"]), "each knows a class"
    assert 0 < found["weights"]["a"] < 1


def test_the_test_split_has_no_say_in_the_weight(two: tuple[str, str], tmp_path: Path) -> None:
    weights = blend(*two)["weights"]
    other = predictions(0, 0)
    test = other["side"] == "test"
    columns = [f"p_{c}" for c in CLASSES]
    other.loc[test, columns] = other.loc[test, columns].to_numpy()[:, ::-1]
    worse = save(other, tmp_path / "other", split_sha256="same", score={"patient_macro_f1": 0.5})
    assert blend(worse, two[1])["weights"] == weights


def test_the_test_figures_are_those_of_the_mixed_predictions(two: tuple[str, str]) -> None:
    found = blend(*two)
    (labels, a, patients), (_, b, _) = (
        probabilities(pd.read_csv(Path(f, "winner", "predictions.csv")), "test") for f in two
    )
    mixed = found["weights"]["a"] * a + found["weights"]["b"] * b
    by_clip = all_metrics(labels, mixed, CLASSES)
    for name, value in by_clip.items():
        assert found["test"]["recording"][name] == pytest.approx(value)
    group = np.unique(patients, return_inverse=True)[1]
    by_patient = all_metrics(*pool(labels, mixed, group), CLASSES)
    own = found["test"]["patient"]
    assert own["macro_f1"] == pytest.approx(by_patient["macro_f1"])
    assert (own["clips"], own["patients"]) == (20, 20)
    alone = all_metrics(*pool(labels, a, group), CLASSES)["macro_f1"]
    difference, low, high = own["differences"]["a"]["macro_f1"]
    assert difference == pytest.approx(by_patient["macro_f1"] - alone)
    assert low <= difference <= high


def test_the_command_prints_and_writes_nothing(
    two: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = files_below(tmp_path)
    assert run(evaluate.main, ["--blend", *two]) == 0
    printed = capsys.readouterr().out
    assert "the weights were chosen here" in printed
    assert "test, by patient" in printed
    assert run(evaluate.main, ["--blend", *two, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["a"], found["b"]) == two
    assert files_below(tmp_path) == before


def nested(folder: Path, knows: int) -> str:
    """A nested search of two outer folds, whose test patients differ."""
    for number in (0, 1):
        table = predictions(7 * number + knows, knows)
        table["patient"] = str(number) + table["patient"]
        save(table, folder / "outer" / str(number), split_sha256=f"fold {number}")
    (folder / "predictions.csv").write_text("the pooled ones, which are not needed")
    return str(folder)


def test_each_outer_fold_has_its_own_weight(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = (nested(tmp_path / str(knows), knows) for knows in (0, 1))
    found = blend(a, b)
    parts, labels, patients = [], [], []
    for number, outer in enumerate(found["outer"]):
        folders = [f"{folder}/outer/{number}" for folder in (a, b)]
        alone = blend(*folders)
        assert outer["weights"] == alone["weights"]
        assert outer["validation"] == alone["validation"]
        (own, p, patient), (_, q, _) = (
            probabilities(pd.read_csv(Path(f, "winner", "predictions.csv")), "test")
            for f in folders
        )
        weight = alone["weights"]["a"]
        parts.append(weight * p + (1 - weight) * q)
        labels.append(own)
        patients.append(patient)
    pooled, truth = np.concatenate(parts), np.concatenate(labels)
    expected = all_metrics(truth, pooled, CLASSES)["macro_f1"]
    assert found["test"]["recording"]["macro_f1"] == pytest.approx(expected)
    group = np.unique(np.concatenate(patients), return_inverse=True)[1]
    expected = all_metrics(*pool(truth, pooled, group), CLASSES)["macro_f1"]
    assert found["test"]["patient"]["macro_f1"] == pytest.approx(expected)
    assert found["test"]["patient"]["patients"] == 40
    assert run(evaluate.main, ["--blend", a, b]) == 0
    assert "test, by patient" in capsys.readouterr().out
    refused(["--blend", a, f"{a}/outer/0"], "2 and 0 outer folds", capsys)


def test_trials_without_a_test_split(tmp_path: Path) -> None:
    """A trial's folder has no config.json, and no test predictions."""
    folders = []
    for n in (0, 1):
        folder = tmp_path / str(n)
        folder.mkdir()
        predictions(n, n, ("validation",)).to_csv(folder / "predictions.csv", index=False)
        folders.append(str(folder))
    found = blend(*folders)
    assert (found["metric"], found["test"]) == ("macro_f1", None)


def refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(evaluate.main, arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]


def test_other_splits_are_refused(
    two: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, _ = two
    other = save(predictions(1, 1), tmp_path / "split", split_sha256="another")
    refused(["--blend", a, other], "trained with different splits", capsys)
    fewer = save(predictions(1, 1).iloc[3:], tmp_path / "fewer", split_sha256="same")
    refused(["--blend", a, fewer], "validation splits have different clips", capsys)
    renamed = predictions(1, 1).rename(columns={"p_URTI": "p_Asthma"})
    renamed["label"] = renamed["label"].replace("URTI", "Asthma")
    unlike = save(renamed, tmp_path / "unlike", split_sha256="same")
    refused(["--blend", a, unlike], "different classes", capsys)


def test_an_objective_that_predictions_do_not_tell_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    score = {"session_macro_f1": 0.5}
    folders = [save(predictions(n, n), tmp_path / str(n), score=score) for n in (0, 1)]
    refused(["--blend", *folders], "cannot be chosen by session_macro_f1", capsys)


def test_wrong_inputs_are_refused(
    two: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = two
    refused(["--blend", a, f"{tmp_path}/none"], "none' is no folder", capsys)
    refused(["--blend", a, b, "--compare", a, b], "needs no --blend: drop it", capsys)
    refused(["--blend", a, b, "--data", a], "--blend reads saved predictions", capsys)
    refused(["--blend", a, "s3://bucket/search"], "must be a local folder", capsys)
    Path(b, "winner", "config.json").write_text("[]")
    refused(["--blend", a, b], "is damaged", capsys)
