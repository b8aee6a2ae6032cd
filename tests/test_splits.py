"""Protocols: who stands on which side, what leaks, and the file that remembers it."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedGroupKFold
from support.small_sets import imagined, real_set

from resp_tune.common.choices import PROTOCOLS
from resp_tune.data.dataset import Dataset, load_dataset
from resp_tune.data.make_split import make_split
from resp_tune.data.split import Fold, Split, load_split, save_split
from resp_tune.data.split_spec import SplitSpec
from resp_tune.data.tasks import TASKS, Clips, get_task, make_clips
from resp_tune.errors import UserError

SIX = TASKS["diagnosis"].classes
MARKS = [(False, False), (True, False), (False, True), (True, True)]


@pytest.fixture(scope="module")
def icbhi() -> Dataset:
    return load_dataset(real_set())


def cohort(patients: dict[str, int], *, per_patient: int = 2, device: str = "Meditron") -> Dataset:
    """`patients` of each diagnosis, each with some recordings, of four cycles of all kinds."""
    pairs = []
    number = 100
    for diagnosis, count in patients.items():
        for _ in range(count):
            number += 1
            stems = [f"{number}_{index}b1_Al_sc_{device}" for index in range(per_patient)]
            pairs += [(stem, diagnosis) for stem in stems]
    return imagined(pairs, cycles=MARKS)


def clips_for(name: str, dataset: Dataset) -> Clips:
    return make_clips(get_task(name), dataset)


def all_sides(split: Split) -> list[tuple[str, ...]]:
    both = [side for fold in split.folds for side in (fold.train, fold.validation)]
    return both if split.test is None else [*both, split.test]


def check_valid(dataset: Dataset, clips: Clips, split: Split) -> None:
    """What must hold for any protocol: a partition, every class everywhere, nobody twice."""
    assert split.folds
    for fold in split.folds:
        parts = [set(fold.train), set(fold.validation), set(split.test or ())]
        assert len(set.union(*parts)) == sum(len(part) for part in parts)
    for side in all_sides(split):
        assert side == tuple(sorted(set(side)))
        labels = {clip.label for clip in split.select_clips(clips, side)}
        assert labels == set(range(len(split.classes))), (split.protocol, split.classes)


# ---- patient


def test_patient_is_the_documented_split(icbhi: Dataset) -> None:
    clips = clips_for("diagnosis", icbhi)
    stems = np.array([clip.recording.stem for clip in clips.clips])
    patients = np.array([clip.recording.patient for clip in clips.clips])
    labels = np.array([clip.label for clip in clips.clips])
    assert list(stems) == sorted(stems)
    for seed in (0, 7):
        outer = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
        rest, test = next(outer.split(labels, labels, patients))
        split = make_split(icbhi, clips, SplitSpec("patient", split_seed=seed, folds=4))
        assert split.test == tuple(stems[test])
        inner = StratifiedGroupKFold(4, shuffle=True, random_state=seed)
        expected = tuple(
            Fold(tuple(stems[rest][a]), tuple(stems[rest][b]))
            for a, b in inner.split(labels[rest], labels[rest], patients[rest])
        )
        assert split.folds == expected
        one = make_split(icbhi, clips, SplitSpec("patient", split_seed=seed))
        assert (one.folds, one.test) == (expected[:1], split.test)


@pytest.mark.parametrize("task", ["diagnosis", "cycles"])
def test_patient_on_the_real_set_over_seeds(icbhi: Dataset, task: str) -> None:
    clips = clips_for(task, icbhi)
    patients = {r.stem: r.patient for r in icbhi.recordings}
    tests = set()
    for seed in range(10):
        split = make_split(icbhi, clips, SplitSpec("patient", split_seed=seed, folds=4))
        check_valid(icbhi, clips, split)
        assert dataclasses.astuple(split.leaks(icbhi)) == (0, 0, 0.0)
        assert split.notes == ()
        assert len(set().union(*(fold.validation for fold in split.folds))) == sum(
            len(fold.validation) for fold in split.folds
        )
        tests.add(tuple(sorted({patients[stem] for stem in split.test or ()})))
    overlaps = [len(set(a) & set(b)) / len(set(a) | set(b)) for a, b in combinations(tests, 2)]
    assert len(tests) == 10
    assert np.mean(overlaps) < 0.35  # by chance .11; the patients with most clips rarely move


def test_patient_leaves_out_what_it_cannot_score(icbhi: Dataset) -> None:
    clips = clips_for("diagnosis-8", icbhi)
    split = make_split(icbhi, clips, SplitSpec("patient"))
    assert split.classes == SIX
    assert len(split.notes) == 1
    assert "Asthma (1 recording of 1 patient)" in split.notes[0]
    assert "LRTI (2 recordings of 2 patients)" in split.notes[0]
    diagnoses = {r.stem: r.diagnosis for r in icbhi.recordings}
    assert {diagnoses[stem] for side in all_sides(split) for stem in side} == set(SIX)
    check_valid(icbhi, clips, split)


GROUPS = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4)), min_size=15, max_size=40)


@settings(max_examples=40, deadline=None)
@given(groups=GROUPS, seed=st.integers(0, 2**32 - 1), task=st.sampled_from(["diagnosis", "cycles"]))
def test_no_patient_on_two_sides_whatever_the_groups(
    groups: list[tuple[int, int]], seed: int, task: str
) -> None:
    pairs = [
        (f"{100 + number}_{index % 2}b1_{location}_sc_Meditron", SIX[label])
        for number, (label, count) in enumerate(groups)
        for index, location in enumerate(("Al", "Ar", "Pl", "Pr")[:count])
    ]
    dataset = imagined(pairs, cycles=MARKS)
    clips = clips_for(task, dataset)
    enough = [label for label in range(3) if sum(g == label for g, _ in groups) >= 5]
    if task == "diagnosis" and len(enough) < 2:
        with pytest.raises(UserError, match="fewer than two classes remain"):
            make_split(dataset, clips, SplitSpec("patient", split_seed=seed))
        return
    try:
        split = make_split(dataset, clips, SplitSpec("patient", split_seed=seed, folds=4))
    except UserError as error:
        assert "on every side" in str(error)  # noqa: PT017
        return
    check_valid(dataset, clips, split)
    assert dataclasses.astuple(split.leaks(dataset)) == (0, 0, 0.0)
    patients = {r.stem: r.patient for r in dataset.recordings}
    for fold in split.folds:
        people = [{patients[s] for s in side} for side in (fold.train, fold.validation)]
        people.append({patients[s] for s in split.test or ()})
        assert sum(len(side) for side in people) == len(set.union(*people))


def test_smallest_cohort_is_divided_for_any_seed() -> None:
    """Five patients of a class: each is needed on one side. Other random states help out."""
    dataset = cohort({"COPD": 5, "Healthy": 5, "URTI": 5})
    clips = clips_for("diagnosis", dataset)
    for seed in range(20):
        split = make_split(dataset, clips, SplitSpec("patient", split_seed=seed, folds=4))
        check_valid(dataset, clips, split)
        assert split.classes == ("COPD", "Healthy", "URTI")
        assert "Bronchiectasis, Bronchiolitis, Pneumonia: none in this data set" in split.notes


def rare() -> Dataset:
    """Cycles of which one class is heard in six patients only, and never often."""
    common = imagined(
        [(f"{100 + p}_1b1_Al_sc_Meditron", "COPD") for p in range(6, 24)], cycles=MARKS[:3]
    )
    marks = [*MARKS, MARKS[0]]
    seldom = imagined([(f"{100 + p}_1b1_Al_sc_Meditron", "COPD") for p in range(6)], cycles=marks)
    return dataclasses.replace(common, recordings=seldom.recordings + common.recordings)


def test_a_missing_class_moves_on_to_the_next_state() -> None:
    dataset = rare()
    clips = clips_for("cycles", dataset)
    moved = 0
    for seed in range(10):
        split = make_split(dataset, clips, SplitSpec("patient", split_seed=seed))
        check_valid(dataset, clips, split)
        assert split == make_split(dataset, clips, SplitSpec("patient", split_seed=seed))
        moved += any("random state" in note for note in split.notes)
    assert moved > 0


def test_cycles_of_a_few_recordings() -> None:
    """Every recording has another commonest label: there is nothing to stratify by."""
    marks = [[MARKS[i % 4], *MARKS] for i in range(8)]
    parts = [imagined([(f"{100 + i}_1b1_Al_sc_M", "COPD")], cycles=m) for i, m in enumerate(marks)]
    recordings = tuple(recording for part in parts for recording in part.recordings)
    dataset = dataclasses.replace(parts[0], recordings=recordings)
    clips = clips_for("cycles", dataset)
    check_valid(dataset, clips, make_split(dataset, clips, SplitSpec("patient", folds=4)))


def test_too_few_patients() -> None:
    dataset = cohort({"COPD": 9, "Healthy": 4})
    with pytest.raises(UserError, match=r"Healthy \(8 recordings of 4 patients\): left out, fewer"):
        make_split(dataset, clips_for("diagnosis", dataset), SplitSpec("patient"))


# ---- official


@pytest.mark.parametrize("drop", [False, True])
def test_official_on_the_real_set(icbhi: Dataset, drop: bool) -> None:
    clips = clips_for("cycles", icbhi)
    split = make_split(icbhi, clips, SplitSpec("official", folds=4, drop_shared_patients=drop))
    check_valid(icbhi, clips, split)
    assert split.test is not None
    assert len(split.test) == 381
    assert len(split.select_clips(clips, split.test)) == 2756
    whole = set(split.folds[0].train) | set(split.folds[0].validation)
    leaks = split.leaks(icbhi)
    patients = {r.stem: r.patient for r in icbhi.recordings}
    if drop:
        assert len(whole) == 539 - 13
        assert dataclasses.astuple(leaks) == (0, 0, 0.0)
        assert not {"156", "218"} & {patients[stem] for stem in whole}
    else:
        assert len(whole) == 539
        assert len(split.select_clips(clips, whole)) == 4142
        assert (leaks.patients, leaks.sessions) == (2, 5)
        assert leaks.recording_share > 0
    assert len(split.notes) == 1
    assert "patients 156, 218 are in training and test" in split.notes[0]
    for fold in split.folds:
        assert not {patients[s] for s in fold.train} & {patients[s] for s in fold.validation}


def test_official_is_for_cycles_only(icbhi: Dataset) -> None:
    with pytest.raises(UserError, match="use the task cycles"):
        make_split(icbhi, clips_for("diagnosis", icbhi), SplitSpec("official"))


def test_official_needs_the_official_split() -> None:
    dataset = cohort({"COPD": 10})
    with pytest.raises(UserError, match="has no official split"):
        make_split(dataset, clips_for("cycles", dataset), SplitSpec("official"))


def challenge_set(official: dict[int, Any]) -> Dataset:
    """Two recordings of each of 24 patients; `official` is the split of the patient's first one.

    The second one is in `train`, but for None: then the split has neither.
    """
    dataset = cohort({"COPD": 24})
    listed = []
    for recording in dataset.recordings:
        side = official.get(int(recording.patient), "train")
        first = recording.session.endswith("_0b1")
        side = side if first or side is None else "train"
        listed.append(dataclasses.replace(recording, official=side))
    return dataclasses.replace(dataset, recordings=tuple(listed))


@pytest.mark.parametrize("drop", [False, True])
def test_official_keeps_the_challenges_test_split(drop: bool) -> None:
    """Patients 101 and 102 are in both splits, and 124 in neither."""
    dataset = challenge_set({101: "test", 102: "test", 124: None})
    clips = clips_for("cycles", dataset)
    split = make_split(dataset, clips, SplitSpec("official", folds=4, drop_shared_patients=drop))
    check_valid(dataset, clips, split)
    assert split.test == ("101_0b1_Al_sc_Meditron", "102_0b1_Al_sc_Meditron")
    searched = {s for fold in split.folds for s in (*fold.train, *fold.validation)}
    patients = {stem.split("_")[0] for stem in searched}
    whole = {str(number) for number in range(101, 124)}
    shared = "patients 101, 102 are in training and test of the official split"
    if drop:
        assert patients == whole - {"101", "102"}
        assert len(searched) == 42
        note = f"{shared}: their 2 training recordings are left out"
    else:
        assert patients == whole
        assert len(searched) == 44
        note = f"{shared}: the test split leaks; drop_shared_patients avoids it"
    assert split.notes == ("2 recordings left out: not in the official split", note)


@pytest.mark.parametrize("side", ["train", "test"])
def test_official_needs_both_of_its_splits(side: Any) -> None:
    one = challenge_set({})
    listed = tuple(dataclasses.replace(r, official=side) for r in one.recordings)
    dataset = dataclasses.replace(one, recordings=listed)
    with pytest.raises(UserError, match=r"ICBHI_challenge_train_test\.txt must name") as caught:
        make_split(dataset, clips_for("cycles", dataset), SplitSpec("official"))
    assert "use the protocol patient" in str(caught.value)


# ---- recording


def test_recording_is_the_notebooks(icbhi: Dataset) -> None:
    clips = clips_for("diagnosis-8", icbhi)
    shares = []
    for seed in range(20):
        split = make_split(icbhi, clips, SplitSpec("recording", split_seed=seed))
        (fold,) = split.folds
        assert (len(fold.train), len(fold.validation), split.test) == (736, 184, None)
        assert set(fold.train) | set(fold.validation) == {r.stem for r in icbhi.recordings}
        assert split.classes == TASKS["diagnosis-8"].classes
        leaks = split.leaks(icbhi)
        assert leaks.patients > 50
        assert leaks.sessions > 90
        shares.append(leaks.recording_share)
    assert np.mean(shares) == pytest.approx(0.948, abs=0.01)


def test_recording_folds_are_disjoint_and_name_what_is_absent(icbhi: Dataset) -> None:
    split = make_split(icbhi, clips_for("diagnosis-8", icbhi), SplitSpec("recording", folds=4))
    held_out = [stem for fold in split.folds for stem in fold.validation]
    assert len(held_out) == len(set(held_out)) == 4 * 184
    # One recording of Asthma: at least three of four validation sides cannot have it.
    assert sum("Asthma" in note and "validation" in note for note in split.notes) >= 3


# ---- device


@pytest.mark.parametrize("device", ["AKGC417L", "LittC2SE", "Litt3200", "Meditron"])
def test_device_holds_out_its_patients(icbhi: Dataset, device: str) -> None:
    clips = clips_for("cycles", icbhi)
    split = make_split(icbhi, clips, SplitSpec("device", hold_out_device=device, folds=4))
    check_valid(icbhi, clips, split)
    devices = {r.stem: r.device for r in icbhi.recordings}
    assert split.test == tuple(sorted(s for s, d in devices.items() if d == device))
    assert dataclasses.astuple(split.leaks(icbhi)) == (0, 0, 0.0)
    assert any("the patient is in the test split" in note for note in split.notes)


def test_device_that_cannot_be_scored(icbhi: Dataset) -> None:
    with pytest.raises(UserError, match=r"fewer than two classes remain \(Bronchiectasis, .*test"):
        make_split(
            icbhi, clips_for("diagnosis", icbhi), SplitSpec("device", hold_out_device="AKGC417L")
        )


def test_device_leaves_out_classes_by_name(icbhi: Dataset) -> None:
    clips = clips_for("chronic", icbhi)
    split = make_split(icbhi, clips, SplitSpec("device", hold_out_device="LittC2SE"))
    assert split.classes == ("chronic", "non-chronic")
    assert "healthy: left out, no patient in the test split" in split.notes
    check_valid(icbhi, clips, split)


def two_devices() -> Dataset:
    """12 patients with a Meditron, of whom 2 also have two recordings with a LittC2SE; 8 more."""
    meditron, litt = cohort({"COPD": 12}), cohort({"COPD": 14}, device="LittC2SE")
    both = {"101", "102", *(str(number) for number in range(113, 121))}
    kept = [
        dataclasses.replace(r, patient=name, person=name, session=f"{name}_{r.session[-1]}L")
        for r, name in (
            (r, str(int(r.patient) + (0 if int(r.patient) < 103 else 10))) for r in litt.recordings
        )
        if name in both
    ]
    stems = [dataclasses.replace(r, stem=f"{r.patient}{r.stem[3:]}") for r in kept]
    return dataclasses.replace(meditron, recordings=(*meditron.recordings, *stems))


def test_device_holds_out_its_recordings_and_their_patients() -> None:
    dataset = two_devices()
    clips = clips_for("cycles", dataset)
    split = make_split(dataset, clips, SplitSpec("device", hold_out_device="LittC2SE", folds=4))
    check_valid(dataset, clips, split)
    assert split.test is not None
    assert split.test == tuple(sorted(r.stem for r in dataset.recordings if r.device == "LittC2SE"))
    searched = {s for fold in split.folds for s in (*fold.train, *fold.validation)}
    assert {stem.split("_")[0] for stem in searched} == {str(n) for n in range(103, 113)}
    assert split.notes == (
        "4 recordings of 2 patients left out: made with another device than LittC2SE, but the "
        "patient is in the test split",
    )


def test_device_without_a_patient_in_common_leaves_none_out() -> None:
    dataset = two_devices()
    own = tuple(r for r in dataset.recordings if r.patient not in ("101", "102"))
    dataset = dataclasses.replace(dataset, recordings=own)
    clips = clips_for("cycles", dataset)
    split = make_split(dataset, clips, SplitSpec("device", hold_out_device="Meditron"))
    assert split.notes == ()
    assert {stem.split("_")[0] for stem in split.test or ()} == {str(n) for n in range(103, 113)}


def test_device_without_a_recording_of_the_task_is_refused() -> None:
    dataset = two_devices()
    listed = tuple(
        dataclasses.replace(r, cycles=() if r.device == "LittC2SE" else r.cycles)
        for r in dataset.recordings
    )
    dataset = dataclasses.replace(dataset, recordings=listed)
    spec = SplitSpec("device", hold_out_device="LittC2SE")
    with pytest.raises(UserError, match="no recording of LittC2SE belongs to the task: choose an"):
        make_split(dataset, clips_for("cycles", dataset), spec)


# ---- options


DATASET = cohort({"COPD": 6, "Healthy": 6})
DIAGNOSIS = make_clips(TASKS["diagnosis"], DATASET)


@pytest.mark.parametrize(
    ("protocol", "options", "message"),
    [
        ("patients", {}, "unknown protocol 'patients': did you mean 'patient'"),
        ("patient", {"folds": 5}, "is outside 1 to 4"),
        ("patient", {"folds": 0}, "is outside 1 to 4"),
        ("patient", {"split_seed": -1}, "split_seed: -1 is outside 0 to 4294967295"),
        ("patient", {"hold_out_device": "Meditron"}, "needs the protocol device"),
        ("patient", {"drop_shared_patients": True}, "needs the protocol official"),
        ("device", {}, "needs hold_out_device, one of Meditron"),
        ("device", {"hold_out_device": "Meditrom"}, "did you mean 'Meditron'"),
        ("device", {"hold_out_device": "Meditron"}, "nothing is left to train on"),
    ],
)
def test_options_are_checked(protocol: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        make_split(DATASET, DIAGNOSIS, SplitSpec(protocol, **options))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_protocol_that_make_split_lacks_is_no_split_by_patient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("resp_tune.data.split_spec.PROTOCOLS", (*PROTOCOLS, "hospital"))
    with pytest.raises(ValueError, match="lacks the protocol 'hospital'"):
        make_split(DATASET, DIAGNOSIS, SplitSpec("hospital"))


@pytest.mark.parametrize("protocol", ["patient", "recording"])
def test_one_class_is_no_task(protocol: str) -> None:
    dataset = cohort({"COPD": 10})
    with pytest.raises(UserError, match="cannot be scored"):
        make_split(dataset, clips_for("diagnosis", dataset), SplitSpec(protocol))


# ---- the value and its file


def test_labels_are_indices_of_the_scored_classes() -> None:
    split = make_split(DATASET, DIAGNOSIS, SplitSpec("patient"))
    assert split.classes == ("COPD", "Healthy")
    assert split.test is not None
    for clip in split.select_clips(DIAGNOSIS, split.test):
        assert split.classes[clip.label] == clip.recording.diagnosis


def test_leaks_are_counted() -> None:
    stems = ["1_1b1_Al_sc_M", "1_1b1_Ar_sc_M", "1_2b1_Al_sc_M", "2_1b1_Al_sc_M", "3_1b1_Al_sc_M"]
    dataset = imagined([(stem, "COPD") for stem in stems])
    fold = Fold(train=(stems[0],), validation=(stems[1], stems[3]))
    split = Split("patient", "copd", 0, (fold,), (stems[2], stems[4]), ("COPD", "other"), ())
    assert dataclasses.astuple(split.leaks(dataset)) == (1, 1, 0.5)
    whole = dataclasses.replace(split, folds=(Fold((stems[3],), (stems[0],)),), test=(stems[4],))
    assert dataclasses.astuple(whole.leaks(dataset)) == (0, 0, 0.0)
    with pytest.raises(UserError, match="not in"):
        split.leaks(imagined([(stems[0], "COPD")]))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_file_gives_the_sides_back(icbhi: Dataset, protocol: str, tmp_path: Path) -> None:
    device = "Meditron" if protocol == "device" else None
    clips = clips_for("cycles", icbhi)
    split = make_split(icbhi, clips, SplitSpec(protocol, hold_out_device=device, folds=2))
    save_split(split, tmp_path / "split.json")
    assert load_split(tmp_path / "split.json") == split
    assert [path.name for path in tmp_path.iterdir()] == ["split.json"]


def test_digest_names_the_division() -> None:
    split = make_split(DATASET, DIAGNOSIS, SplitSpec("patient"))
    assert split.digest == make_split(DATASET, DIAGNOSIS, SplitSpec("patient")).digest
    assert split.digest == dataclasses.replace(split, notes=("other words",)).digest
    others = [
        make_split(DATASET, DIAGNOSIS, SplitSpec("patient", split_seed=1)),
        make_split(DATASET, DIAGNOSIS, SplitSpec("patient", folds=2)),
        dataclasses.replace(split, test=None),
        dataclasses.replace(split, classes=("COPD",)),
    ]
    assert len({split.digest, *(other.digest for other in others)}) == 5


def test_same_sides_in_another_process() -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[1:];"
        "from test_splits import DATASET, DIAGNOSIS, SplitSpec, make_split;"
        "print(make_split(DATASET, DIAGNOSIS, SplitSpec('patient', split_seed=3, folds=4)).digest,"
        "      make_split(DATASET, DIAGNOSIS, SplitSpec('recording', split_seed=3)).digest)"
    )
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    answer = subprocess.run(
        [sys.executable, "-c", code, *folders],
        env={"PYTHONHASHSEED": "12345", "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    here = [
        make_split(DATASET, DIAGNOSIS, SplitSpec("patient", split_seed=3, folds=4)).digest,
        make_split(DATASET, DIAGNOSIS, SplitSpec("recording", split_seed=3)).digest,
    ]
    assert answer.stdout.split() == here


def _swap(content: dict[str, object]) -> dict[str, object]:
    return {**content, "test": content["folds"][0]["train"]}  # type: ignore[index]


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "cut off": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "no JSON": lambda data: b"\xff\xfe\x00",
    "other JSON": lambda data: b"[]",
    "numbers for stems": lambda data: data.replace(b'"validation": [', b'"validation": [1,'),
    "a patient moved": lambda data: json.dumps(_swap(json.loads(data))).encode(),
    "another seed": lambda data: data.replace(b'"split_seed": 0', b'"split_seed": 1'),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_files_are_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "split.json"
    save_split(make_split(DATASET, DIAGNOSIS, SplitSpec("patient")), path)
    before = path.read_bytes()
    path.write_bytes(DAMAGE[kind](before))
    assert path.read_bytes() != before
    with pytest.raises(UserError, match="damaged") as caught:
        load_split(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load_split(tmp_path / "split.json")
