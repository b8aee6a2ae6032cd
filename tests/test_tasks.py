"""Tasks: classes, their order, and who is left out."""

from __future__ import annotations

from collections import Counter

import pytest
from support.small_sets import imagined, real_set

from resp_tune.data.dataset import load_dataset
from resp_tune.data.metadata import DIAGNOSES
from resp_tune.data.tasks import TASKS, Task, get_task, make_clips
from resp_tune.errors import UserError

CLASSES = {
    "diagnosis": ("Bronchiectasis", "Bronchiolitis", "COPD", "Healthy", "Pneumonia", "URTI"),
    "diagnosis-8": DIAGNOSES,
    "healthy-sick": ("healthy", "sick"),
    "chronic": ("healthy", "chronic", "non-chronic"),
    "copd": ("COPD", "other"),
    "cycles": ("normal", "crackle", "wheeze", "both"),
}
ONE_EACH = [(f"{100 + i}_1b1_Al_sc_Meditron", name) for i, name in enumerate(DIAGNOSES)]


def _labels(task: Task, pairs: list[tuple[str, str]]) -> dict[str, str]:
    """Class by diagnosis."""
    dataset = imagined(pairs)
    return {
        clip.recording.diagnosis: task.classes[clip.label]
        for clip in make_clips(task, dataset).clips
    }


def test_classes_are_fixed() -> None:
    assert {name: task.classes for name, task in TASKS.items()} == CLASSES
    assert all(name == task.name for name, task in TASKS.items())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("diagnosis", {d: d for d in DIAGNOSES if d not in ("Asthma", "LRTI")}),
        ("diagnosis-8", {d: d for d in DIAGNOSES}),
        ("healthy-sick", {d: "healthy" if d == "Healthy" else "sick" for d in DIAGNOSES}),
        ("copd", {d: "COPD" if d == "COPD" else "other" for d in DIAGNOSES}),
        (
            "chronic",
            {
                "Healthy": "healthy",
                **dict.fromkeys(("COPD", "Bronchiectasis", "Asthma"), "chronic"),
                **dict.fromkeys(("URTI", "LRTI", "Pneumonia", "Bronchiolitis"), "non-chronic"),
            },
        ),
    ],
)
def test_diagnoses_of_each_class(name: str, expected: dict[str, str]) -> None:
    assert _labels(get_task(name), ONE_EACH) == expected


def test_whole_recordings() -> None:
    clips = make_clips(get_task("copd"), imagined(ONE_EACH)).clips
    assert [(clip.recording.stem, clip.start, clip.end) for clip in clips] == [
        (stem, 0.0, 20.0) for stem, _ in ONE_EACH
    ]


def test_cycles_become_clips() -> None:
    marks = [(False, False), (True, False), (False, True), (True, True)]
    clips = make_clips(get_task("cycles"), imagined(ONE_EACH[:2], cycles=marks)).clips
    assert [(c.recording.stem, c.start, c.end, c.label) for c in clips] == [
        (stem, float(i), i + 1.0, i) for stem, _ in ONE_EACH[:2] for i in range(4)
    ]


def test_who_is_left_out_is_named() -> None:
    pairs = [*ONE_EACH, ("100_2b2_Al_sc_Meditron", "Asthma"), ("200_1b1_Al_sc_Phone", "Covid")]
    dropped = make_clips(get_task("diagnosis"), imagined(pairs)).dropped
    assert len(dropped) == 3
    assert dropped[0].startswith("Asthma: 2 recordings of 1 patient left out: ")
    assert "diagnosis-8" in dropped[0]
    assert dropped[1].startswith("Covid: 1 recording of 1 patient left out: ")
    assert dropped[2].startswith("LRTI: 1 recording of 1 patient left out: ")
    assert "Covid" not in _labels(get_task("healthy-sick"), pairs)


def test_recordings_without_cycles_are_named() -> None:
    with_cycles = imagined(ONE_EACH[:1], cycles=[(True, False)])
    both = imagined(ONE_EACH[1:])
    dataset = type(both)(both.root, with_cycles.recordings + both.recordings, (), True)
    clips = make_clips(get_task("cycles"), dataset)
    assert len(clips.clips) == 1
    assert clips.dropped[0].startswith("7 recordings of 7 patients left out: no annotated cycles")


def test_nothing_to_do() -> None:
    with pytest.raises(UserError, match="'cycles': it needs annotations"):
        make_clips(get_task("cycles"), imagined(ONE_EACH))
    with pytest.raises(UserError, match="needs diagnoses among Bronchiectasis"):
        make_clips(get_task("diagnosis"), imagined([("200_1b1_Al_sc_Phone", "Covid")]))


def test_unknown_task() -> None:
    with pytest.raises(UserError, match="unknown task 'cycle': did you mean 'cycles'"):
        get_task("cycle")


def test_real_counts() -> None:
    dataset = load_dataset(real_set())
    counts = {}
    for name, task in TASKS.items():
        clips = make_clips(task, dataset)
        counts[name] = dict(Counter(task.classes[clip.label] for clip in clips.clips))
    six = {
        "COPD": 793,
        "Healthy": 35,
        "URTI": 23,
        "Bronchiectasis": 16,
        "Pneumonia": 37,
        "Bronchiolitis": 13,
    }
    assert sum(six.values()) == 917
    assert counts == {
        "diagnosis": six,
        "diagnosis-8": {**six, "LRTI": 2, "Asthma": 1},
        "healthy-sick": {"healthy": 35, "sick": 885},
        "chronic": {"healthy": 35, "chronic": 810, "non-chronic": 75},
        "copd": {"COPD": 793, "other": 127},
        "cycles": {"normal": 3642, "crackle": 1864, "wheeze": 886, "both": 506},
    }
    dropped = make_clips(get_task("diagnosis"), dataset).dropped
    assert [line.split(" left out")[0] for line in dropped] == [
        "Asthma: 1 recording of 1 patient",
        "LRTI: 2 recordings of 2 patients",
    ]
