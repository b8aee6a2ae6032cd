"""Baselines: the reference table, and the cases in which the answer is known."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import balanced_accuracy_score, f1_score
from sklearn.model_selection import StratifiedGroupKFold
from support.audits import imagined_statistics
from support.small_sets import imagined, real_set

from resp_tune.data.dataset import Dataset, load_dataset
from resp_tune.data.make_split import make_split
from resp_tune.data.split import Split
from resp_tune.data.split_spec import SplitSpec
from resp_tune.data.tasks import Clips, check_enough, get_task, make_clips
from resp_tune.errors import UserError
from resp_tune.evaluation import baselines
from resp_tune.evaluation.band_statistics import load_band_statistics
from resp_tune.evaluation.baselines import (
    BASELINES,
    controlled_clips,
    patient_lookup,
    predict_baselines,
    score_baselines,
)

# majority accuracy, then balanced accuracy and macro-F1 of device only, of all columns and of band
# statistics
TABLE = {
    "diagnosis-8": (0.862, 0.256, 0.232, 0.417, 0.367, 0.385, 0.324),
    "diagnosis": (0.865, 0.477, 0.363, 0.595, 0.505, 0.506, 0.428),
    "chronic": (0.880, 0.652, 0.473, 0.627, 0.634, 0.658, 0.612),
    "healthy-sick": (0.962, 0.948, 0.689, 0.890, 0.772, 0.827, 0.725),
    "copd": (0.862, 0.836, 0.836, 0.823, 0.867, 0.847, 0.849),
}


@pytest.fixture(scope="module")
def icbhi() -> Dataset:
    return load_dataset(real_set())


@pytest.fixture
def few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enough for tables in which a column tells all or nothing."""
    monkeypatch.setattr(baselines, "TREES", 20)


def _row(scores: dict[str, Any]) -> list[float]:
    return [
        scores["majority_accuracy"],
        *(scores[name][m] for name in BASELINES for m in ("balanced_accuracy", "macro_f1")),
    ]


def _score(dataset: Dataset, clips: Clips, seeds: int = 1) -> dict[str, Any]:
    return score_baselines(clips, imagined_statistics(dataset), seeds=seeds, jobs=1)


def _predict(dataset: Dataset, clips: Clips, split: Split) -> dict[str, Any]:
    return predict_baselines(clips, split, imagined_statistics(dataset), seeds=1).scores()


def _confounded(*, confound: bool) -> Dataset:
    """Twelve patients a class; with `confound` the device tells the class, else nothing does."""
    pairs = []
    for number in range(24):
        sick = number % 2
        told = sick if confound else (number // 2) % 2
        device = "Litt3200" if told else "Meditron"
        diagnosis = "COPD" if sick else "Healthy"
        pairs += [
            (f"{100 + number}_1b1_{location}_sc_{device}", diagnosis)
            for location in ("Al", "Ar")[: 1 + number % 2]
        ]
    return imagined(pairs)


@pytest.mark.parametrize(
    "task",
    [
        pytest.param(name, marks=pytest.mark.slow if name == "diagnosis" else pytest.mark.thorough)
        for name in TABLE
    ],
)
def test_reference_table(icbhi: Dataset, task: str) -> None:
    statistics = load_band_statistics(icbhi, "recording", 2)
    found = _row(score_baselines(make_clips(get_task(task), icbhi), statistics, jobs=2))
    np.testing.assert_allclose(found, TABLE[task], atol=0.02)
    assert found[0] == pytest.approx(TABLE[task][0], abs=5e-4)


@pytest.mark.usefixtures("few_trees")
def test_against_a_plain_loop() -> None:
    dataset = _confounded(confound=False)
    clips = make_clips(get_task("diagnosis"), dataset)
    recordings = dataset.recordings
    labels = np.array([r.diagnosis for r in recordings])
    patients = np.array([r.patient for r in recordings])
    columns = np.array([[r.device == "Litt3200", r.device == "Meditron"] for r in recordings])
    weights = np.array([1 / (patients == patient).sum() for patient in patients])
    expected = []
    for seed in (0, 1):
        answer = labels.copy()
        folds = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
        for train, test in folds.split(labels, labels, patients):
            forest = RandomForestClassifier(
                20, min_samples_leaf=3, class_weight="balanced", random_state=seed
            )
            forest.fit(columns[train], labels[train], sample_weight=weights[train])
            answer[test] = forest.predict(columns[test])
        expected.append(
            (balanced_accuracy_score(labels, answer), f1_score(labels, answer, average="macro"))
        )
    found = _score(dataset, clips, seeds=2)["device"]
    means = np.mean(expected, axis=0)
    assert found == pytest.approx({"balanced_accuracy": means[0], "macro_f1": means[1]})


@pytest.mark.usefixtures("few_trees")
def test_a_told_device_tells_all_and_an_untold_one_nothing() -> None:
    for confound, low, high in ((True, 1.0, 1.0), (False, 0.0, 0.7)):
        dataset = _confounded(confound=confound)
        clips = make_clips(get_task("diagnosis"), dataset)
        scores = _score(dataset, clips)
        assert low <= scores["device"]["balanced_accuracy"] <= high
        assert scores["majority_accuracy"] == pytest.approx(24 / 36)


@pytest.mark.usefixtures("few_trees")
def test_missing_age_and_sex_are_values_too() -> None:
    dataset = _confounded(confound=False)
    recordings = tuple(
        dataclasses.replace(r, age=None, sex=None) if r.diagnosis == "COPD" else r
        for r in dataset.recordings
    )
    dataset = dataclasses.replace(dataset, recordings=recordings)
    clips = make_clips(get_task("diagnosis"), dataset)
    assert _score(dataset, clips)["all"]["balanced_accuracy"] == 1.0


@pytest.mark.usefixtures("few_trees")
def test_small_sets_have_fewer_folds() -> None:
    stems = [(f"{n}_1b1_Al_sc_Meditron", "COPD" if n % 2 else "Healthy") for n in range(6)]
    dataset = imagined(stems)
    scores = _score(dataset, make_clips(get_task("copd"), dataset))
    assert 0 <= scores["all"]["macro_f1"] <= 1


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        ([("1_1b1_Al_sc_X", "COPD"), ("1_1b1_Ar_sc_X", "COPD")], "clips of 1 patient here, .* two"),
        ([("1_1b1_Al_sc_X", "COPD"), ("2_1b1_Al_sc_X", "Healthy")], "a class with at least two"),
    ],
)
def test_too_few_for_any_baseline(pairs: list[tuple[str, str]], words: str) -> None:
    dataset = imagined(pairs)
    clips = make_clips(get_task("copd"), dataset)
    with pytest.raises(UserError, match=words):
        check_enough(clips)
    with pytest.raises(UserError, match=words):
        _score(dataset, clips)


@pytest.mark.usefixtures("few_trees")
def test_held_out_is_fitted_on_the_other_sides() -> None:
    dataset = _confounded(confound=True)
    clips = make_clips(get_task("diagnosis"), dataset)
    split = make_split(dataset, clips, SplitSpec("patient"))
    assert split.test is not None
    scores = _predict(dataset, clips, split)
    assert scores["device"] == {"balanced_accuracy": 1.0, "macro_f1": 1.0}
    truth = [c.recording.diagnosis for c in clips.clips]
    assert truth.count("COPD") > truth.count("Healthy")
    asked = split.select_clips(clips, split.test)
    copd = np.mean([split.classes[clip.label] == "COPD" for clip in asked])
    assert scores["majority_accuracy"] == pytest.approx(copd)
    # With the test side's devices swapped, what was learnt on the other sides is always wrong.
    other = {"Litt3200": "Meditron", "Meditron": "Litt3200"}
    swapped = dataclasses.replace(
        dataset,
        recordings=tuple(
            dataclasses.replace(r, device=other[r.device]) if r.stem in split.test else r
            for r in dataset.recordings
        ),
    )
    clips = make_clips(get_task("diagnosis"), swapped)
    scores = _predict(swapped, clips, split)
    assert scores["device"] == {"balanced_accuracy": 0.0, "macro_f1": 0.0}


@pytest.mark.usefixtures("few_trees")
def test_held_out_without_a_test_side_uses_validation() -> None:
    dataset = _confounded(confound=True)
    clips = make_clips(get_task("diagnosis"), dataset)
    split = make_split(dataset, clips, SplitSpec("recording", split_seed=1))
    assert _predict(dataset, clips, split)["device"]["macro_f1"] == 1.0


def test_cycles_are_rows_of_their_recording(icbhi: Dataset) -> None:
    clips = make_clips(get_task("cycles"), icbhi)
    split = make_split(icbhi, clips, SplitSpec("official"))
    scores = _predict(icbhi, clips, split)
    assert scores["majority_accuracy"] == pytest.approx(1579 / 2756)
    assert 0.2 < scores["all"]["balanced_accuracy"] < 0.45


def test_looking_up_the_patient(icbhi: Dataset) -> None:
    scores = patient_lookup(icbhi, make_clips(get_task("diagnosis-8"), icbhi))
    assert scores["accuracy"] == pytest.approx(0.957, abs=0.01)
    assert scores["macro_f1"] == pytest.approx(0.77, abs=0.04)
    assert scores["balanced_accuracy"] == pytest.approx(0.72, abs=0.04)


def test_looking_up_strangers_gives_the_majority() -> None:
    """One recording a patient: nobody is known, everyone gets the commonest class."""
    pairs = [(f"{n}_1b1_Al_sc_Meditron", "COPD" if n % 4 else "Healthy") for n in range(100, 200)]
    dataset = imagined(pairs)
    scores = patient_lookup(dataset, make_clips(get_task("copd"), dataset), seeds=5)
    assert scores["balanced_accuracy"] == pytest.approx(0.5)
    assert scores["accuracy"] == pytest.approx(0.75, abs=0.1)


def test_the_controlled_group(icbhi: Dataset) -> None:
    clips = controlled_clips(icbhi)
    chosen = [clip.recording for clip in clips.clips]
    healthy = [r for r in chosen if r.diagnosis == "Healthy"]
    sick = [r for r in chosen if r.diagnosis != "Healthy"]
    assert (len(healthy), len({r.patient for r in healthy})) == (35, 26)
    assert (len(sick), len({r.patient for r in sick})) == (40, 23)


@pytest.mark.thorough
def test_the_controlled_group_without_audio(icbhi: Dataset) -> None:
    scores = _score(icbhi, controlled_clips(icbhi), seeds=5)
    assert scores["all"]["balanced_accuracy"] == pytest.approx(0.655, abs=0.02)
