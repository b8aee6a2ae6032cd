"""Figures of predictions without a model: of sides, and against the baselines."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.audits import few_trees, imagined_statistics, in_memory
from support.small_sets import imagined

from resp_tune.data.dataset import Dataset
from resp_tune.data.make_split import make_split
from resp_tune.data.split_spec import SplitSpec
from resp_tune.data.synthetic.settings import SynthSettings
from resp_tune.data.task_files import task_from_classes
from resp_tune.data.tasks import Task, get_task, make_clips
from resp_tune.evaluation import baselines
from resp_tune.evaluation.baselines import (
    BASELINES,
    SCORES,
    load_baseline_predictions,
    load_baselines,
    predict_baselines,
)
from resp_tune.evaluation.bootstrap import DRAWS
from resp_tune.evaluation.compare import baseline_differences
from resp_tune.evaluation.score import group_metrics, metrics_with_intervals
from resp_tune.training.datamodule import DataModule, prediction_table
from resp_tune.training.metrics import Labels, Probabilities, all_metrics, compute_metrics


@pytest.fixture(scope="module", autouse=True)
def _imagined() -> Iterator[None]:
    with few_trees(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(baselines, "load_band_statistics", imagined_statistics)
        yield


def problem_of(dataset: Dataset, task: Task | str = "diagnosis") -> DataModule:
    clips = make_clips(get_task(task) if isinstance(task, str) else task, dataset)
    return DataModule(dataset, clips, make_split(dataset, clips, SplitSpec("patient")))


@pytest.fixture(scope="module")
def datamodule() -> DataModule:
    return problem_of(in_memory(SynthSettings(120, 1.0, 0)))


def frame_of(datamodule: DataModule, *, right: float, seed: int = 0) -> pd.DataFrame:
    """Predictions of the test side, each right with probability `right`."""
    rng = np.random.default_rng(seed)
    classes = np.array(datamodule.split.classes)
    clips = datamodule.split.select_clips(datamodule.clips, datamodule.split.test or ())
    recordings = [clip.recording for clip in clips]
    labels = np.array([clip.label for clip in clips])
    guess = np.where(
        rng.random(len(clips)) < right, labels, rng.integers(len(classes), size=len(clips))
    )
    p = np.eye(len(classes))[guess] * 0.7 + 0.3 / len(classes)
    return pd.DataFrame(
        {
            "side": "test",
            "recording": [r.stem for r in recordings],
            "patient": [r.patient for r in recordings],
            "device": [r.device for r in recordings],
            "label": classes[labels],
            "predicted": classes[guess],
            **{f"p_{name}": p[:, i] for i, name in enumerate(classes)},
        }
    )


def test_what_no_clip_has_is_left_out_and_missing_from_the_names(datamodule: DataModule) -> None:
    frame, classes = frame_of(datamodule, right=1.0), datamodule.split.classes
    some = frame[frame["label"].isin(classes[:2])]
    found = metrics_with_intervals(some, classes)
    assert found["classes"] == list(classes[:2])
    assert found["macro_f1"] == found["balanced_accuracy"] == 1.0
    assert metrics_with_intervals(frame, classes)["classes"] == list(classes)


def test_a_side_of_recordings(datamodule: DataModule) -> None:
    frame = frame_of(datamodule, right=0.6)
    found = group_metrics(frame, datamodule)
    assert found.keys() == {"per_class", "by_session", "by_patient", "by_device", "controlled"}
    assert found["by_session"]["clips"] >= found["by_patient"]["clips"]
    assert found["by_patient"]["clips"] == frame["patient"].nunique()
    assert {name: one["clips"] for name, one in found["by_device"].items()} == dict(
        frame["device"].value_counts()
    )
    for name, row in found["per_class"].items():
        own = frame[frame["label"] == name]
        assert row["support"] == len(own)
        assert row["recall"] == pytest.approx((own["predicted"] == name).mean())
        assert 0 <= row["patient_recall"] <= 1


def test_a_side_of_cycles() -> None:
    """Meditron's recordings hold normal cycles alone, so nothing abnormal can be found there."""
    pairs = [
        (f"{100 + n}_1b1_Al_sc_{'Meditron' if n % 2 else 'Litt3200'}", "COPD") for n in range(30)
    ]
    dataset = imagined(pairs, cycles=[(False, False), (True, False), (False, True), (True, True)])
    datamodule = problem_of(dataset, "cycles")
    frame = frame_of(datamodule, right=0.5)
    frame = frame[(frame["device"] != "Meditron") | (frame["label"] == "normal")]
    found = group_metrics(frame, datamodule)
    assert found["by_session"] is found["by_patient"] is found["controlled"] is None
    assert all("patient_recall" not in row for row in found["per_class"].values())
    normal = found["by_device"]["Meditron"]
    assert normal["classes"] == ["normal"]
    assert "sensitivity" not in normal
    assert normal["icbhi_score"] == normal["specificity"]
    assert found["by_device"]["Litt3200"].keys() >= {"sensitivity", "specificity", "icbhi_score"}


def children(*diagnoses: str) -> Dataset:
    """Sixty children on the Meditron, one recording each."""
    dataset = imagined(
        [(f"{100 + n}_1b1_Al_sc_Meditron", diagnoses[n % len(diagnoses)]) for n in range(60)]
    )
    aged = tuple(dataclasses.replace(r, age=4.0) for r in dataset.recordings)
    return dataclasses.replace(dataset, recordings=aged)


@pytest.mark.parametrize(
    ("classes", "well"),
    [
        ({"well": ["Healthy"], "ill": ["*"]}, "well"),
        ({"ill": ["*"], "HEALTHY": ["healthy"]}, "HEALTHY"),
        ({"healthy": ["Healthy", "URTI"], "ill": ["*"]}, None),
        ({"healthy": ["Cough"], "well": ["Healthy"], "ill": ["*"]}, "well"),
    ],
)
def test_the_healthy_children_are_found_by_their_diagnosis(
    classes: dict[str, list[str]], well: str | None
) -> None:
    """Of a data set with a diagnosis of its own, whose children are sick children too."""
    datamodule = problem_of(
        children("Healthy", "URTI", "Cough"), task_from_classes("mine", classes)
    )
    frame = frame_of(datamodule, right=0.6)
    found = group_metrics(frame, datamodule)["controlled"]
    if well is None:
        assert found is None
        return
    assert (found["clips"], found["classes"]) == (len(frame), ["healthy", "sick"])
    called, is_well = frame[f"p_{well}"] > 0.5, frame["label"] == well
    recalls = [(called[is_well]).mean(), (~called[~is_well]).mean()]
    assert found["balanced_accuracy"] == pytest.approx(np.mean(recalls))


@pytest.mark.parametrize(
    "classes",
    [
        {"healthy": ["Fine"], "ill": ["Cough", "Cold"]},
        {"well": ["Healthy"], "fine": ["Fine"], "ill": ["*"]},
    ],
)
def test_diagnoses_of_its_own_have_no_controlled_part(classes: dict[str, list[str]]) -> None:
    datamodule = problem_of(children("Fine", "Cough", "Cold"), task_from_classes("mine", classes))
    assert group_metrics(frame_of(datamodule, right=0.6), datamodule)["controlled"] is None


def test_what_is_scored_from_the_frame_is_what_was_predicted(datamodule: DataModule) -> None:
    stems, classes = datamodule.split.test or (), datamodule.split.classes
    table, rng = datamodule.clip_labels(stems, stems), np.random.default_rng(0)
    p = rng.dirichlet(np.ones(len(classes)), len(table.label)).astype(np.float32)
    found = metrics_with_intervals(prediction_table("test", table, classes, p), classes)
    for name, value in all_metrics(table.label, p, classes).items():
        assert found[name] == value, name


def test_against_the_baselines_of_the_table(datamodule: DataModule) -> None:
    """Each draw by hand: the winner's figure less the mean over the baseline's seeds."""
    frame = frame_of(datamodule, right=0.6)
    found = baseline_differences(frame, datamodule)
    statistics = imagined_statistics(datamodule.dataset)
    table = predict_baselines(datamodule.clips, datamodule.split, statistics).scores()
    answers = load_baseline_predictions(datamodule)
    names = sorted(set(frame["patient"]))
    drawn = np.random.default_rng(0).integers(len(names), size=(DRAWS, len(names)))
    rows = [np.flatnonzero(frame["patient"] == name) for name in names]
    p = frame.filter(like="p_").to_numpy()
    some = range(0, DRAWS, 10)
    for key in BASELINES:
        others = [np.eye(p.shape[1])[row] for row in answers.by_baseline[key]]
        for name in SCORES:
            one = found[key][name]

            def compute(labels: Labels, p: Probabilities, name: str = name) -> float:
                return compute_metrics(labels, p, [name])[name]

            assert one["baseline"] == pytest.approx(table[key][name])
            assert one["winner"] == pytest.approx(compute(answers.labels, p))
            assert one["difference"] == pytest.approx(one["winner"] - one["baseline"])
            differences = []
            for draw in some:
                clips = np.concatenate([rows[i] for i in drawn[draw]])
                labels = answers.labels[clips]
                theirs = np.mean([compute(labels, other[clips]) for other in others])
                differences.append(compute(labels, p[clips]) - theirs)
            low, high = one["interval"]
            assert low < one["difference"] < high
            # Every tenth draw only: the ends of the interval are near those of all.
            spread = np.quantile(differences, (0.025, 0.975))
            np.testing.assert_allclose((low, high), spread, atol=0.06)
            inside = np.mean((low <= np.array(differences)) & (np.array(differences) <= high))
            assert 0.9 <= inside <= 0.99


def test_where_the_device_tells_all() -> None:
    """The forests are never wrong: a winner can be as good, or worse beyond doubt."""
    told = problem_of(
        imagined(
            [
                (f"{100 + n}_1b1_Al_sc_{device}", diagnosis)
                for n in range(80)
                for device, diagnosis in [(("Litt3200", "COPD"), ("Meditron", "Healthy"))[n % 2]]
            ]
        )
    )
    same = baseline_differences(frame_of(told, right=1.0), told)["device"]["macro_f1"]
    assert same == {"winner": 1.0, "baseline": 1.0, "difference": 0.0, "interval": [0.0, 0.0]}
    worse = baseline_differences(frame_of(told, right=0.0), told)["all"]["balanced_accuracy"]
    assert worse["interval"][1] < 0


def test_other_clips_are_refused(datamodule: DataModule) -> None:
    frame = frame_of(datamodule, right=0.6)
    for wrong in (frame[1:], frame[::-1], frame.assign(label=frame["label"].iloc[0])):
        with pytest.raises(ValueError, match="not predictions of the test split"):
            baseline_differences(wrong, datamodule)


def test_answers_are_fitted_once(datamodule: DataModule, monkeypatch: pytest.MonkeyPatch) -> None:
    found = load_baselines(datamodule, 1)
    statistics = imagined_statistics(datamodule.dataset)
    answers = predict_baselines(datamodule.clips, datamodule.split, statistics)
    assert found["test_side"] == answers.scores()

    def never(*_: object, **__: object) -> None:
        raise AssertionError("fitted again")

    for fit in ("predict_forest", "_regression"):
        monkeypatch.setattr(baselines, fit, never)
    assert load_baselines(datamodule, 1) == found
    assert load_baseline_predictions(datamodule).scores() == found["test_side"]
    # Other sides of the same clips: what is had over the whole data set stays.
    split = make_split(datamodule.dataset, datamodule.clips, SplitSpec("recording", split_seed=5))
    other = load_baselines(dataclasses.replace(datamodule, split=split), 1)
    assert other == {name: value for name, value in found.items() if name != "test_side"}


@pytest.mark.parametrize(
    "damage", ["[]", "{}", "3", "null", '{"device": 1}', "{", '{"stems": "ab"}']
)
def test_a_damaged_cache_is_made_anew(
    datamodule: DataModule, damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESP_TUNE_CACHE", str(tmp_path))
    found = load_baselines(datamodule, 1)
    kept = {path: path.read_text() for path in (tmp_path / "baselines").iterdir()}
    assert len(kept) == 2
    for path in kept:
        path.write_text(damage)
    assert load_baselines(datamodule, 1) == found
    assert {path: path.read_text() for path in kept} == kept
