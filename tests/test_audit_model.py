"""The audit of a model: only on the test side of its own sides, and with the figures of others."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, f1_score
from support.audits import few_trees, make_sets, trained

from resp_tune import evaluate
from resp_tune.audit.model import audit_model, rebuild_datamodule
from resp_tune.audit.sections import model_rows
from resp_tune.cli import run
from resp_tune.data.dataset import Dataset, load_dataset
from resp_tune.data.make_split import make_split
from resp_tune.data.sounds.waveforms import load_waveform
from resp_tune.data.split_spec import SplitSpec
from resp_tune.data.tasks import get_task, make_clips
from resp_tune.errors import UserError
from resp_tune.training.model_bundle import Bundle, load_bundle


@pytest.fixture(scope="module", autouse=True)
def _few_trees() -> Iterator[None]:
    with few_trees():
        yield


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_sets(tmp_path_factory.mktemp("sets"))


@pytest.fixture(scope="module")
def bundle(sets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("trained"), sets["none"])


def audited(bundle: Bundle, dataset: Dataset) -> dict[str, Any]:
    return audit_model(
        bundle, rebuild_datamodule(bundle, dataset), workers=1, record=lambda reading: (reading, "")
    )


@pytest.fixture(scope="module")
def model(bundle: Path, sets: dict[str, Path]) -> dict[str, Any]:
    return audited(load_bundle(bundle), load_dataset(sets["none"]))


def test_the_model_through_the_command(
    bundle: Path, sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", str(sets["none"]), "--winner", str(bundle), "--out", str(tmp_path)]
    assert run(evaluate.main, arguments) == 0
    printed = capsys.readouterr()
    assert "the test split is accessed now: " in printed.err
    assert "by patient" in printed.out
    found = json.loads((tmp_path / "audit.json").read_text())["model"]
    config = json.loads((bundle / "config.json").read_text())
    assert found["reading"]["weights_sha256"] == config["weights_sha256"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", found["reading"]["time"])
    page = (tmp_path / "audit.html").read_text()
    assert found["reading"]["time"] in page
    assert "Each class" in page


def test_the_model_s_figures(model: dict[str, Any], bundle: Path, sets: dict[str, Path]) -> None:
    """Against scikit-learn on predictions of single files, as `predict` makes them."""
    loaded, dataset = load_bundle(bundle), load_dataset(sets["none"])
    split = make_split(dataset, make_clips(get_task("diagnosis"), dataset), SplitSpec("patient"))
    asked = [r for r in dataset.recordings if r.stem in set(split.test or ())]
    probabilities = np.array(
        [loaded.predict_waveform(load_waveform(r.path, loaded.config.sample_rate)) for r in asked]
    )
    truth = np.array([loaded.classes.index(r.diagnosis) for r in asked])
    test = model["test"]
    assert (test["clips"], test["patients"]) == (len(asked), len({r.patient for r in asked}))
    for name, part in (
        ("by_clip", np.ones(len(asked), bool)),
        *((d, np.array([r.device == d for r in asked])) for d in test["by_device"]),
    ):
        figures = test[name] if name == "by_clip" else test["by_device"][name]
        answer, own = probabilities[part].argmax(1), truth[part]
        there = np.unique(own)
        f1 = f1_score(own, answer, labels=there, average="macro", zero_division=0)
        recalls = [np.mean(answer[own == c] == c) for c in there]
        assert figures["macro_f1"] == pytest.approx(f1)
        assert figures["balanced_accuracy"] == pytest.approx(np.mean(recalls))
        assert figures["majority_accuracy"] == pytest.approx(np.bincount(own).max() / len(own))
        for metric, (low, high) in figures["intervals"].items():
            assert low <= high, metric
    patients = np.array([r.patient for r in asked])
    names = np.unique(patients)
    means = np.array([probabilities[patients == p].mean(0) for p in names])
    people = np.array([truth[patients == p][0] for p in names])
    found = test["by_patient"]["balanced_accuracy"]
    assert found == pytest.approx(balanced_accuracy_score(people, means.argmax(1)))
    support = {name: row["support"] for name, row in test["per_class"].items()}
    assert support == {c: int((truth == i).sum()) for i, c in enumerate(loaded.classes)}
    recall = test["per_class"]["COPD"]["recall"]
    copd = truth == loaded.classes.index("COPD")
    assert recall == pytest.approx(np.mean(probabilities[copd].argmax(1) == truth[copd]))
    for baseline in ("device", "all", "audio_linear"):
        assert test["baselines"][baseline].keys() == {"balanced_accuracy", "macro_f1"}
    assert test["against"].keys() == {"device", "all", "audio_linear"}


def test_a_device_s_missing_classes_are_named(model: dict[str, Any]) -> None:
    classes = model["classes"]
    figures = {**model["test"]["by_clip"], "classes": classes[1:]}
    few = {**figures, "classes": classes[:2]}
    rows = model_rows(
        {**model, "test": {**model["test"], "by_device": {"Meditron": figures, "LittC2SE": few}}}
    )
    names = [row[0] for row in rows]
    assert f"within Meditron, without {classes[0]}" in names
    assert f"within LittC2SE, {classes[0]}, {classes[1]} only" in names


def test_the_controlled_part(model: dict[str, Any], bundle: Path, sets: dict[str, Path]) -> None:
    """Every recording made a child's on the Meditron: the whole test side, healthy or sick."""
    loaded, dataset = load_bundle(bundle), load_dataset(sets["none"])
    children = dataclasses.replace(
        dataset,
        recordings=tuple(
            dataclasses.replace(r, device="Meditron", age=5.0) for r in dataset.recordings
        ),
    )
    found = audited(loaded, children)
    controlled = found["test"]["controlled"]
    assert controlled["clips"] == found["test"]["clips"] == model["test"]["clips"]
    assert controlled["classes"] == ["healthy", "sick"]
    healthy = found["test"]["per_class"]["Healthy"]["support"] / controlled["clips"]
    assert controlled["majority_accuracy"] == pytest.approx(max(healthy, 1 - healthy))
    assert set(controlled["intervals"]) >= {"balanced_accuracy", "auroc"}


def test_other_data_is_refused(
    bundle: Path, sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other patients, or one recording less: the test side may hold what was trained on."""
    fewer = shutil.copytree(sets["none"], tmp_path / "fewer")
    next(fewer.rglob("*.wav")).unlink()
    for folder in (sets["icbhi"], fewer):
        arguments = ["--data", str(folder), "--winner", str(bundle), "--out", f"{tmp_path}/out"]
        assert run(evaluate.main, arguments) == 2
        printed = capsys.readouterr()
        assert "does not give the split that the model was trained with" in printed.err
        assert "test split is accessed" not in printed.err
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": None}, "no task"),
        ({"protocol": 3}, "no protocol"),
        ({"provenance": {}}, "no provenance.split_sha256"),
        ({"provenance": {"split_seed": 0}}, "no provenance.split_sha256"),
        ({"provenance": {"split_sha256": "0" * 64}}, "does not give the split"),
        ({"split_seed": 1}, "does not give the split"),
        ({"split_seed": "x"}, "does not give the split"),
        ({"task": "copd"}, "does not give the split"),
        ({"task": "cough"}, "does not give the split"),
        ({"task": "cough", "task_classes": None}, "unknown task 'cough'"),
        ({"task": "cough", "task_classes": {"a": 1}}, "saved classes of the task 'cough'"),
    ],
)
def test_a_bundle_that_does_not_say_whom_it_knows(
    change: dict[str, Any], words: str, bundle: Path, sets: dict[str, Path]
) -> None:
    loaded = load_bundle(bundle)
    details = {**loaded.details, **change}
    if "split_seed" in change:
        details["provenance"] = {**loaded.details["provenance"], **change}
    with pytest.raises(UserError, match=words):
        rebuild_datamodule(dataclasses.replace(loaded, details=details), load_dataset(sets["none"]))


def test_a_task_of_a_file_that_is_gone(sets: dict[str, Path], tmp_path: Path) -> None:
    task = tmp_path / "task.yaml"
    task.write_text("name: mine\nclasses: {well: [Healthy], ill: ['*']}\n")
    loaded = load_bundle(trained(tmp_path, sets["none"], "--task", str(task)))
    task.unlink()
    datamodule = rebuild_datamodule(loaded, load_dataset(sets["none"]))
    assert datamodule.split.classes == ("well", "ill")
    assert datamodule.split.task == "mine"


def test_a_protocol_without_a_test_split(sets: dict[str, Path], tmp_path: Path) -> None:
    loaded = load_bundle(trained(tmp_path, sets["none"], "--protocol", "recording"))
    done: list[object] = []
    datamodule = rebuild_datamodule(loaded, load_dataset(sets["none"]))
    found = audit_model(loaded, datamodule, workers=1, record=lambda r: (r, done.append(r)))
    assert (found["test"], found["reading"], done) == (None, None, [])
    assert "no test split" in found["reason"]


def test_no_figures_without_a_record(said: list[str], bundle: Path, sets: dict[str, Path]) -> None:
    loaded = load_bundle(bundle)

    def fail(_: object) -> None:
        raise UserError("read-only")

    datamodule = rebuild_datamodule(loaded, load_dataset(sets["none"]))
    with pytest.raises(UserError, match="read-only"):
        audit_model(loaded, datamodule, workers=1, record=fail)
    assert said == []


def test_cycles_have_no_patient_level(
    sets: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A patient has cycles of several classes, so there is no one class to give a patient."""
    folder = trained(tmp_path, sets["none"], "--task", "cycles", "--protocol", "official")
    capsys.readouterr()
    arguments = ["--data", f"{sets['none']}", "--winner", f"{folder}", "--out", f"{tmp_path}/out"]
    assert run(evaluate.main, arguments) == 0
    printed, page = capsys.readouterr().out, (tmp_path / "out" / "audit.html").read_text()
    test = json.loads((tmp_path / "out" / "audit.json").read_text())["model"]["test"]
    assert test["by_patient"] is None
    assert test["controlled"] is None
    whole = test["by_clip"]
    halves = whole["sensitivity"], whole["specificity"]
    assert whole["icbhi_score"] == pytest.approx(np.mean(halves))
    assert halves[1] == pytest.approx(test["per_class"]["normal"]["recall"])
    assert whole["intervals"].keys() >= {"icbhi_score", "sensitivity", "specificity"}
    assert all("icbhi_score" in figures for figures in test["by_device"].values())
    for text in (printed, page):
        assert "by cycle" in text
        assert "ICBHI score" in text
        assert f"specificity {halves[1]:.3f}" in text
