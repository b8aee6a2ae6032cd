"""`evaluate --compare`: two runs by the predictions that they left behind."""

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
from resp_tune.common.choices import METRIC_NAMES
from resp_tune.errors import UserError
from resp_tune.evaluation.bootstrap import bootstrap, intervals
from resp_tune.evaluation.compare import compare, read_predictions
from resp_tune.reporting.format import signed
from resp_tune.training.metrics import compute_metrics

CLASSES = ("normal", "crackle", "wheeze", "both")


def predictions(seed: int, *, sides: tuple[str, ...] = ("validation", "test")) -> pd.DataFrame:
    """Three cycles a recording, two recordings a patient; clips do not depend on the seed."""
    parts = []
    for place, side in enumerate(sides):
        clips = np.random.default_rng(10 + place)
        stems = [f"{100 * (place + 1) + n // 2}_{n % 2}b1_Al_sc_Meditron" for n in range(24)]
        labels = clips.integers(4, size=len(stems) * 3)
        p = np.random.default_rng(seed + place).dirichlet(np.ones(4), len(labels))
        p[np.arange(len(labels)), labels] += 0.2 * seed
        p = (p / p.sum(1, keepdims=True)).round(6)
        recording = np.repeat(stems, 3)
        columns = {f"p_{name}": p[:, i] for i, name in enumerate(CLASSES)}
        parts.append(
            pd.DataFrame(
                {
                    "side": side,
                    "recording": recording,
                    "patient": [stem.split("_")[0] for stem in recording],
                    "device": "Meditron",
                    "start": np.tile([0.0, 1.5, 3.25], len(stems)),
                    "label": np.array(CLASSES)[labels],
                    "predicted": np.array(CLASSES)[p.argmax(1)],
                    **columns,
                }
            )
        )
    return pd.concat(parts, ignore_index=True)


def save(frame: pd.DataFrame, folder: Path) -> Path:
    folder.mkdir(parents=True)
    frame.to_csv(folder / "predictions.csv", index=False)
    return folder


def by_hand(a: pd.DataFrame, b: pd.DataFrame, side: str, name: str) -> tuple[float, list[float]]:
    values, drawn = [], []
    for frame in (a, b):
        own = frame[frame["side"] == side]
        labels = own["label"].map(CLASSES.index).to_numpy()
        p = own[[f"p_{c}" for c in CLASSES]].to_numpy()
        values.append(compute_metrics(labels, p, [name])[name])
        drawn.append(bootstrap(labels, p, list(own["patient"]))[name])
    span = intervals({name: drawn[0] - drawn[1]})[name]
    return values[0] - values[1], list(span)


def test_two_searches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = predictions(2), predictions(1)
    save(a, tmp_path / "first" / "winner")
    save(b, tmp_path / "second" / "winner")
    before = files_below(tmp_path)
    arguments = ["--compare", f"{tmp_path}/first", f"{tmp_path}/second/winner"]
    assert run(evaluate.main, [*arguments, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sides"].keys() == {"validation", "test"}
    for side, figures in found["sides"].items():
        assert (figures["clips"], figures["patients"]) == (72, 12)
        assert figures["metrics"].keys() == set(METRIC_NAMES)
        for name in ("macro_f1", "auroc", "sensitivity", "log_loss"):
            one = figures["metrics"][name]
            difference, span = by_hand(a, b, side, name)
            assert one["difference"] == pytest.approx(difference)
            assert one["a"] - one["b"] == pytest.approx(difference)
            assert one["interval"] == pytest.approx(span)
    assert run(evaluate.main, arguments) == 0
    printed = capsys.readouterr().out
    assert "runs are selected on this split" in printed
    assert "test: 72 clips of 12 patients" in printed
    score = found["sides"]["test"]["metrics"]["icbhi_score"]
    assert signed(score["difference"]) in printed
    assert files_below(tmp_path) == before


@pytest.mark.parametrize(("seed", "inside"), [(1, "yes"), (6, "no")])
def test_a_trial_against_a_winner(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], seed: int, inside: str
) -> None:
    """A trial has a validation side only; a run against its like differs by nothing."""
    trial = save(predictions(seed, sides=("validation",)), tmp_path / "trials" / "3")
    winner = save(predictions(1), tmp_path / "winner")
    assert run(evaluate.main, ["--compare", str(trial), str(winner)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not [line for line in lines if line.startswith("test:")]
    accuracy = next(line for line in lines if line.startswith("accuracy"))
    assert accuracy.split()[-1] == inside


def test_the_order_of_recordings_and_a_missing_start_do_not_matter() -> None:
    a, b = predictions(2), predictions(1)
    shuffled = b.sort_values(["recording", "side"], ascending=False, kind="stable")
    expected = compare(a, b)
    assert compare(a, shuffled) == expected
    assert compare(a, b.drop(columns="start")) == expected
    assert compare(a, b[[*b.columns[:7], *b.columns[:6:-1]]]) == expected


def changed(**change: Any) -> pd.DataFrame:
    frame = predictions(1)
    for name, value in change.items():
        frame.loc[frame.index[80], name] = value
    return frame


def test_one_side_that_differs_leaves_the_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of searches with other --folds: who validates differs, who is tested does not."""
    a, b = predictions(2), predictions(1)[3:]
    found = compare(a, b)
    assert found["sides"].keys() == {"test"}
    assert found["sides"]["test"] == compare(a, predictions(1))["sides"]["test"]
    assert "have different clips (3 only the first" in found["left_out"]["validation"]
    folders = [str(save(frame, tmp_path / name)) for name, frame in (("a", a), ("b", b))]
    assert run(evaluate.main, ["--compare", *folders]) == 0
    printed = capsys.readouterr().out
    assert "validation is not compared: the two validation splits have different clips" in printed
    assert "--folds" in printed
    assert run(evaluate.main, ["--compare", *folders, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["left_out"] == found["left_out"]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (
            predictions(1)[:-3],
            "the two test splits have different clips (3 only the first, 0 only the",
        ),
        (predictions(1).replace("205_1b1_Al_sc_Meditron", "x"), "e.g. of"),
        (changed(label="normal"), "the two test splits differ in the label of 1 clip, e.g. of 201"),
        (changed(patient="9"), "differ in the patient of 1 clip"),
        (changed(start=0.2), "differ in the start of 1 clip"),
        (predictions(1).assign(p_cough=0.0), "only one has cough"),
        (predictions(1, sides=("train",)), "no split in common"),
    ],
)
def test_runs_that_cannot_be_compared(other: pd.DataFrame, words: str) -> None:
    a, b = (frame[frame["side"] != "validation"] for frame in (predictions(2), other))
    with pytest.raises(UserError) as raised:
        compare(a, b)
    assert words in str(raised.value)
    with pytest.raises(UserError):
        compare(b, a)


def test_a_single_patient_has_no_interval(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    frames = [predictions(seed).assign(patient="101") for seed in (1, 2)]
    assert compare(*frames)["sides"]["test"]["metrics"]["accuracy"]["interval"] is None
    folders = [str(save(frame, tmp_path / str(i))) for i, frame in enumerate(frames)]
    assert run(evaluate.main, ["--compare", *folders]) == 0
    assert "accuracy" in capsys.readouterr().out


HEAD = "side,recording,patient,label,p_x\n"


@pytest.mark.parametrize(
    "text",
    ["", "a,b\n1,2\n", "\x00", HEAD, HEAD + "t,r,1,x,2\n", HEAD + "t,r,1,y,1\n",
     HEAD + "t,r,1,x,\n", HEAD + "t,r,1,x,NaN\n", "recording,patient,label,p_x\nr,1,x,1\n"],
)  # fmt: skip
def test_a_damaged_table(text: str, tmp_path: Path) -> None:
    (tmp_path / "predictions.csv").write_text(text)
    with pytest.raises(UserError, match="is not a table of predictions"):
        read_predictions(str(tmp_path))


def test_names_are_text(tmp_path: Path) -> None:
    """A patient `007` and a class `NA` are no numbers."""
    save(predictions(1).replace("both", "NA").rename(columns={"p_both": "p_NA"}), tmp_path / "x")
    frame = read_predictions(f"{tmp_path}/x").assign(patient="007")
    assert "NA" in set(frame["label"])
    assert compare(frame, frame)["sides"]["test"]["metrics"]["macro_f1"]["difference"] == 0
