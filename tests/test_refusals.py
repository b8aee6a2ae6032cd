"""A refusal about the data names what was found in it before: the cause, not only a consequence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.small_sets import imagined, write_set

from resp_tune.data.dataset import Dataset, load_dataset, refusal
from resp_tune.data.make_split import make_split
from resp_tune.data.split import load_same_split, save_split
from resp_tune.data.split_spec import SplitSpec
from resp_tune.data.tasks import check_enough, get_task, make_clips
from resp_tune.errors import UserError

CAUSES = ("the table has 85, 86", "no annotation can be read", "the official split is unread", "x")


def dataset(patients: int, diagnosis: str = "COPD", device: str = "Meditron") -> Dataset:
    pairs = [(f"{100 + n}_1b1_Al_sc_{device}", diagnosis) for n in range(patients)]
    return replace(imagined(pairs), problems=CAUSES)


def split(data: Dataset, task: str, protocol: str, **options: str) -> None:
    spec = SplitSpec(protocol, **options)  # type: ignore[arg-type]  # text options only
    make_split(data, make_clips(get_task(task), data), spec)


def check(error: pytest.ExceptionInfo[UserError], reason: str, *first: str) -> None:
    """The message opens with the reason, and names the first of the causes."""
    message = str(error.value)
    assert reason in error.value.reason
    assert message == f"{error.value.reason}. Found in the data: {'; '.join(first)}; 1 more problem"


@pytest.mark.parametrize(
    ("data", "task", "protocol", "options", "reason"),
    [
        (dataset(30), "diagnosis", "patient", {}, "fewer than two classes remain"),
        (dataset(30), "diagnosis", "recording", {}, "all recordings are COPD"),
        (dataset(3), "diagnosis", "recording", {}, "3 recordings cannot be divided"),
        (dataset(9), "diagnosis", "device", {"hold_out_device": "Littt"}, "unknown device"),
        (dataset(9), "diagnosis", "device", {"hold_out_device": "Meditron"}, "nothing is left"),
        (dataset(9, "Covid"), "diagnosis", "patient", {}, "has nothing for the task 'diagnosis'"),
    ],
)
def test_splits_and_tasks_name_the_first_problems(
    data: Dataset, task: str, protocol: str, options: dict[str, str], reason: str
) -> None:
    with pytest.raises(UserError) as error:
        split(data, task, protocol, **options)
    check(error, reason, *CAUSES[:3])


def test_problems_of_what_is_missing_are_named_first() -> None:
    with pytest.raises(UserError) as error:
        split(dataset(9), "cycles", "patient")
    check(error, "it needs annotations", CAUSES[1], CAUSES[0], CAUSES[2])
    marked = imagined(
        [(f"{n}_1b1_Al_sc_Meditron", "COPD") for n in range(9)], cycles=[(True, True)]
    )
    with pytest.raises(UserError) as error:
        split(replace(marked, problems=CAUSES), "cycles", "official")
    check(error, "has no official split", CAUSES[2], CAUSES[0], CAUSES[1])


def test_the_split_of_another_data_set_and_too_few_clips_name_them(tmp_path: Path) -> None:
    pairs = [(f"{n}_1b1_Al_sc_Meditron", ("COPD", "URTI")[n % 2]) for n in range(100, 120)]
    one, other = imagined(pairs), replace(imagined(pairs[:-2]), problems=CAUSES)
    spec = SplitSpec("patient")
    before, now = (make_split(d, make_clips(get_task("diagnosis"), d), spec) for d in (one, other))
    save_split(before, tmp_path / "split.json")
    with pytest.raises(UserError) as error:
        load_same_split(tmp_path / "split.json", now, None, other)
    check(error, "gone: 118_1b1_Al_sc_Meditron, 119_1b1_Al_sc_Meditron", *CAUSES[:3])
    with pytest.raises(UserError) as error:
        before.leaks(other)
    check(error, "2 recordings of the split are not in", *CAUSES[:3])
    with pytest.raises(UserError) as error:
        check_enough(make_clips(get_task("copd"), dataset(1)), CAUSES)
    check(error, "clips of 1 patient", *CAUSES[:3])


def test_without_problems_a_refusal_is_its_reason() -> None:
    assert str(refusal("too few patients", ())) == "too few patients"
    assert str(refusal("too few", ("a\nb",))) == "too few. Found in the data: a b"


def test_lost_patients_are_counted_with_the_near_misses_of_the_table(tmp_path: Path) -> None:
    stems = {f"{n}_1b1_Al_sc_Meditron": "COPD" for n in range(101, 113)}
    root = write_set(tmp_path, stems)
    (root / "patient_diagnosis.csv").write_text(
        "".join(
            f"{p}{n},{'COPD' if n % 2 else 'URTI'}\n"
            for n, p in zip(range(101, 113), "P" * 8 + " " * 4, strict=True)
        )
    )
    data = load_dataset(root)
    with pytest.raises(UserError) as error:
        split(data, "copd", "patient")
    assert (
        "Found in the data: 8 recordings of 8 patients left out, e.g. 101_1b1_Al_sc_Meditron.wav: "
        "patients 101, 102, 103 and 5 more have no diagnosis; the table has P101, P102, P103 and 5 "
        "more"
    ) in str(error.value)


def test_what_leaves_recordings_out_is_named_before_its_consequences(tmp_path: Path) -> None:
    stems = {f"{100 + n}_1b1_Al_sc_Meditron": ("Normal", "COPD")[n % 2] for n in range(12)}
    root = write_set(tmp_path, stems)
    (root / "demographic_info.txt").write_text("101 40 F NA 70 170\n102 x F NA 70 170\n")
    for stem in list(stems)[1::2]:
        audio = root / "audio_and_txt_files" / f"{stem}.wav"
        audio.rename(audio.with_suffix(".mp3"))
    with pytest.raises(UserError) as error:
        split(load_dataset(root), "healthy-sick", "patient")
    causes = str(error.value).partition("Found in the data: ")[2].split("; ")
    assert causes[0].startswith("6 audio files left out, e.g. ")
    assert causes[1].startswith("diagnosis 'Normal' of 6 recordings")
