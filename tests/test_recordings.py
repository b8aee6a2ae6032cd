"""Finding and reading a data set: layouts, encodings, and a line for everything that is wrong."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from pathlib import Path

import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from support.small_sets import originals, real_set, write_audio, write_set

from resp_tune.data.annotations import parse_cycles
from resp_tune.data.dataset import Dataset, load_dataset
from resp_tune.data.metadata import DIAGNOSES, read_diagnoses
from resp_tune.errors import UserError

PAIR = {"101_1b1_Al_sc_Meditron": "URTI", "102_1b1_Ar_mc_LittC2SE": "COPD"}


def _problem(dataset: Dataset, *words: str) -> str:
    """The only problem line that has all `words`."""
    lines = [line for line in dataset.problems if all(word in line for word in words)]
    assert len(lines) == 1, dataset.problems
    return lines[0]


# ---- the real recordings


@pytest.fixture(scope="module")
def icbhi() -> Dataset:
    return load_dataset(real_set())


def test_real_counts(icbhi: Dataset) -> None:
    frame = icbhi.table()
    assert len(frame) == 920
    assert frame.patient.nunique() == 126
    assert frame.session.nunique() == 256
    cycles = Counter((c.crackle, c.wheeze) for r in icbhi.recordings for c in r.cycles)
    assert cycles == {(0, 0): 3642, (1, 0): 1864, (0, 1): 886, (1, 1): 506}
    assert frame.n_cycles.sum() == 6898
    by_diagnosis = frame.groupby("diagnosis").agg(p=("patient", "nunique"), r=("stem", "size"))
    assert {name: (row.p, row.r) for name, row in by_diagnosis.iterrows()} == {
        "COPD": (64, 793),
        "Healthy": (26, 35),
        "URTI": (14, 23),
        "Bronchiectasis": (7, 16),
        "Pneumonia": (6, 37),
        "Bronchiolitis": (6, 13),
        "LRTI": (2, 2),
        "Asthma": (1, 1),
    }
    assert dict(Counter(zip(frame.device, frame.diagnosis, strict=True))) == {
        ("AKGC417L", "COPD"): 646,
        ("Meditron", "COPD"): 36,
        ("Meditron", "Healthy"): 35,
        ("Meditron", "URTI"): 23,
        ("Meditron", "Bronchiectasis"): 16,
        ("Meditron", "Bronchiolitis"): 13,
        ("Meditron", "LRTI"): 2,
        ("Meditron", "Pneumonia"): 2,
        ("LittC2SE", "COPD"): 51,
        ("LittC2SE", "Pneumonia"): 35,
        ("LittC2SE", "Asthma"): 1,
        ("Litt3200", "COPD"): 60,
    }


@pytest.mark.parametrize(
    ("side", "counts", "cycles"),
    [("train", (539, 79), (2063, 1215, 501, 363)), ("test", (381, 49), (1579, 649, 385, 143))],
)
def test_real_official_split(
    icbhi: Dataset, side: str, counts: tuple[int, int], cycles: tuple[int, ...]
) -> None:
    chosen = [r for r in icbhi.recordings if r.official == side]
    assert (len(chosen), len({r.patient for r in chosen})) == counts
    found = Counter((c.crackle, c.wheeze) for r in chosen for c in r.cycles)
    assert tuple(found[key] for key in ((0, 0), (1, 0), (0, 1), (1, 1))) == cycles


def test_real_defects_are_named(icbhi: Dataset) -> None:
    assert len(icbhi.problems) == 4
    _problem(icbhi, "226_1b1_Pl_sc_Meditron", "226_1b1_Pl_sc_LittC2SE", "without the device")
    _problem(icbhi, "age and sex", "223")
    _problem(icbhi, "not read: manifest.csv")
    _problem(icbhi, "2 patients (156, 218)", "5 sessions", "drop_shared_patients")
    assert not icbhi.synthetic


def test_no_two_real_patients_share_a_sound(icbhi: Dataset) -> None:
    assert all(r.person == r.patient for r in icbhi.recordings)
    assert not [line for line in icbhi.problems if "sound" in line or "silent" in line]


def test_real_people(icbhi: Dataset) -> None:
    people = {r.patient: (r.age, r.sex) for r in icbhi.recordings}
    assert people["101"] == (3.0, "F")
    assert people["102"] == (0.75, "F")
    assert people["223"] == (None, None)


def test_originals_load_as_they_came() -> None:
    dataset = load_dataset(originals())
    assert len(dataset.recordings) == 12
    assert {r.sample_rate for r in dataset.recordings} == {44_100, 10_000, 4000}
    assert all(r.cycles for r in dataset.recordings)
    for recording in dataset.recordings:
        assert recording.samples == soundfile.info(recording.path).frames


# ---- where things lie


@pytest.mark.parametrize(
    "folder",
    [
        ".",
        "audio",
        "respiratory_sound_database/Respiratory_Sound_Database/audio_and_txt_files",
        "a/b/c/d/e/f",
    ],
)
def test_found_wherever_it_lies(tmp_path: Path, folder: str) -> None:
    dataset = load_dataset(write_set(tmp_path, PAIR, audio=folder))
    assert [r.stem for r in dataset.recordings] == sorted(PAIR)
    assert [len(r.cycles) for r in dataset.recordings] == [2, 2]
    assert dataset.problems == ()


def test_too_deep_says_what_was_looked_for(tmp_path: Path) -> None:
    write_set(tmp_path, PAIR, audio="a/b/c/d/e/f/g")
    with pytest.raises(
        UserError, match=r"up to 6 folders below.*<patient>_<index>.*resp_tune\.synth"
    ):
        load_dataset(tmp_path)


def test_fields_of_a_recording(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", PAIR)
    (root / "demographic_info.txt").write_text("\r\n101 3 F NA 19 99\r\n102 0.75 M NA 9.8 73\r\n")
    split = "101_1b1_Al_sc_Meditron\ttest\r\n102_1b1_Ar_mc_LittC2SE\ttrain\r\n"
    (root / "ICBHI_challenge_train_test.txt").write_text(split)
    first, second = load_dataset(root).recordings
    assert (first.patient, first.session, first.location, first.mode, first.device) == (
        "101",
        "101_1b1",
        "Al",
        "sc",
        "Meditron",
    )
    assert (first.diagnosis, first.age, first.sex, first.official) == ("URTI", 3.0, "F", "test")
    assert (second.age, second.sex, second.official) == (0.75, "M", "train")
    assert (first.sample_rate, first.channels, first.samples, first.seconds) == (4000, 1, 4000, 1.0)
    assert first.path.is_absolute()
    assert [(c.start, c.end, c.crackle, c.wheeze) for c in first.cycles] == [
        (0.0, 0.5, False, False),
        (0.5, 1.0, True, False),
    ]
    assert not load_dataset(root).problems


def test_wav_flac_rates_channels_together(tmp_path: Path) -> None:
    write_set(tmp_path, PAIR)
    for stem, suffix, options in (
        ("103_1b1_Al_sc_Meditron", "flac", {"rate": 44_100, "subtype": "PCM_24"}),
        ("103_1b1_Ar_sc_Meditron", "WAV", {"rate": 10_000, "channels": 2, "subtype": "PCM_32"}),
        ("103_1b1_Tc_sc_Meditron", "wav", {"rate": 22_050, "subtype": "FLOAT"}),
    ):
        write_audio(tmp_path / f"{stem}.{suffix}", **options)
    with (tmp_path / "patient_diagnosis.csv").open("a") as table:
        table.write("\n103,Healthy\n")
    dataset = load_dataset(tmp_path)
    assert [(r.sample_rate, r.channels) for r in dataset.recordings[2:]] == [
        (44_100, 1),
        (10_000, 2),
        (22_050, 1),
    ]
    _problem(dataset, "3 recordings without annotations")


def test_kaggle_tree_twice_is_one_set(tmp_path: Path) -> None:
    write_set(tmp_path / "Respiratory_Sound_Database" / "Respiratory_Sound_Database", PAIR)
    again = tmp_path / "respiratory_sound_database" / "Respiratory_Sound_Database"
    shutil.copytree(tmp_path / "Respiratory_Sound_Database" / "Respiratory_Sound_Database", again)
    dataset = load_dataset(tmp_path)
    assert len(dataset.recordings) == 2
    assert dataset.problems == (_problem(dataset, "2 recordings a second time", "same content"),)


def test_same_name_other_content_is_a_conflict(tmp_path: Path) -> None:
    root = write_set(tmp_path, PAIR)
    write_audio(root / "zz" / "more" / "101_1b1_Al_sc_Meditron.wav", seed=99)
    dataset = load_dataset(root)
    assert len(dataset.recordings) == 2
    assert dataset.recordings[0].path.parent.name == "audio_and_txt_files"
    _problem(dataset, "duplicate", "zz/more/101_1b1_Al_sc_Meditron.wav", "differs")


def test_flac_copy_of_a_wav_is_a_copy(tmp_path: Path) -> None:
    root = write_set(tmp_path, PAIR)
    wav = root / "audio_and_txt_files" / "101_1b1_Al_sc_Meditron.wav"
    soundfile.write(wav.with_suffix(".flac"), *soundfile.read(wav, dtype="int16"))
    dataset = load_dataset(root)
    assert len(dataset.recordings) == 2
    _problem(dataset, "1 recording a second time")


def test_broken_copy_does_not_hide_the_good_one(tmp_path: Path) -> None:
    root = write_set(tmp_path, PAIR, audio="b/c")
    (root / "a").mkdir()
    (root / "a" / "101_1b1_Al_sc_Meditron.wav").write_bytes(b"")
    dataset = load_dataset(root)
    assert len(dataset.recordings) == 2
    _problem(dataset, "a/101_1b1_Al_sc_Meditron.wav", "empty")


def test_links_are_followed_and_loops_end(tmp_path: Path) -> None:
    write_set(tmp_path / "elsewhere", PAIR)
    root = tmp_path / "set"
    root.mkdir()
    (root / "patient_diagnosis.csv").symlink_to(tmp_path / "elsewhere" / "patient_diagnosis.csv")
    (root / "audio").symlink_to(tmp_path / "elsewhere" / "audio_and_txt_files")
    (root / "again").symlink_to(root)
    (root / "self").symlink_to(root / "self")
    dataset = load_dataset(root)
    assert [r.stem for r in dataset.recordings] == sorted(PAIR)
    assert dataset.problems == ()


def test_paths_in_data_files_lead_nowhere(tmp_path: Path) -> None:
    write_audio(tmp_path / "999_1b1_Al_sc_Meditron.wav")
    root = write_set(tmp_path / "set", PAIR)
    outside = "../999_1b1_Al_sc_Meditron\ttrain\n"
    (root / "ICBHI_challenge_train_test.txt").write_text(outside)
    with (root / "patient_diagnosis.csv").open("a") as table:
        table.write("\n../999,COPD\n999,COPD\n")
    dataset = load_dataset(root)
    assert [r.patient for r in dataset.recordings] == ["101", "102"]
    _problem(dataset, "'../999, COPD' does not name a patient")


def test_hidden_files_and_apples_leavings_are_passed_over(tmp_path: Path) -> None:
    root = write_set(tmp_path, PAIR)
    for name in ("__MACOSX/._101_1b1_Al_sc_Meditron.wav", ".cache/103_1b1_Al_sc_Meditron.wav"):
        (root / name).parent.mkdir()
        (root / name).write_bytes(b"\0\5\26\7")
    assert load_dataset(root).problems == ()


def test_synthetic_sets_say_so(tmp_path: Path) -> None:
    root = write_set(tmp_path / "set", PAIR)
    (root / "SYNTHETIC.txt").write_text("made, not recorded\n")
    assert load_dataset(root).synthetic
    assert load_dataset(tmp_path).synthetic


# ---- the tables


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "latin-1"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("patient_diagnosis.csv", "101,URTI\r\n102,COPD"),
        ("patient_diagnosis.csv", "patient,diagnosis\r\n101,URTI\r\n102,COPD\r\n"),
        ("Patient_Diagnosis.CSV", "row;Patient ID;Disease\n0;101;urti\n1;102;Copd\n"),
        ("patient_diagnosis.csv", '\n"101","URTI"\n\n"102","COPD"\n'),
        ("ICBHI_Challenge_diagnosis.txt", "101\tURTI\r\n102\tCOPD\r\n"),
        ("ICBHI_challenge_diagnosis.txt", "101 URTI\n102 COPD\n"),
    ],
)
def test_diagnosis_tables(tmp_path: Path, encoding: str, name: str, text: str) -> None:
    root = write_set(tmp_path, PAIR)
    (root / "patient_diagnosis.csv").unlink()
    (root / name).write_bytes(text.encode(encoding))
    dataset = load_dataset(root)
    assert [r.diagnosis for r in dataset.recordings] == ["URTI", "COPD"]
    assert dataset.problems == ()


def test_latin_1_letters_do_not_stop_a_table(tmp_path: Path) -> None:
    root = write_set(tmp_path, PAIR)
    table = "101,URTI\n102,COPD\n103,Grippe d'été\n".encode("latin-1")
    (root / "patient_diagnosis.csv").write_bytes(table)
    assert len(load_dataset(root).recordings) == 2


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("101,URTI\n102,\n", ("line 2", "patient 102 has no diagnosis")),
        ("101,URTI\n102\n", ("line 2", "'102'", "has 1 cell, not 2")),
        ("101,URTI\n", ("102_1b1_Ar_mc_LittC2SE.wav", "patient 102 has no diagnosis")),
        ("101,URTI\n102,COPD\n102,Asthma\n", ("line 3", "COPD", "Asthma", "neither")),
        ("101,URTI\n102,COPD\n102,Asthma\n", ("102_1b1", "two different diagnoses")),
    ],
)
def test_patients_without_a_label_are_left_out(
    tmp_path: Path, table: str, words: tuple[str, ...]
) -> None:
    root = write_set(tmp_path, PAIR)
    (root / "patient_diagnosis.csv").write_text(table)
    dataset = load_dataset(root)
    assert [r.patient for r in dataset.recordings] == ["101"]
    _problem(dataset, *words)


def test_a_file_of_another_kind_is_not_named_line_by_line(tmp_path: Path) -> None:
    root = write_set(tmp_path, PAIR)
    (root / "ICBHI_Challenge_diagnosis.txt").write_text("x\n" * 1000)
    dataset = load_dataset(root)
    assert dataset.problems == (
        "ICBHI_Challenge_diagnosis.txt is not used: it has one column only",
    )
    (root / "ICBHI_Challenge_diagnosis.txt").write_text("a sentence\n" * 1000)
    _problem(load_dataset(root), "names no patient of this data set")
    (root / "ICBHI_Challenge_diagnosis.txt").write_text("101-1,COPD\n" * 1000)
    dataset = load_dataset(root)
    assert len(dataset.problems) == 6
    _problem(dataset, "996 more lines", "ICBHI_Challenge_diagnosis.txt")


def test_people_that_make_no_sense(tmp_path: Path) -> None:
    root = write_set(tmp_path, PAIR)
    (root / "demographic_info.txt").write_text("101 old F NA\n102 70 X NA\n")
    dataset = load_dataset(root)
    assert [(r.age, r.sex) for r in dataset.recordings] == [(None, None)] * 2
    _problem(dataset, "line 1", "101", "age 'old'")
    _problem(dataset, "line 2", "102", "sex 'X'")
    _problem(dataset, "no age and sex of 2 patients: 101, 102")


def test_official_split_with_gaps(tmp_path: Path) -> None:
    root = write_set(tmp_path, PAIR)
    (root / "ICBHI_challenge_train_test.txt").write_text(
        "101_1b1_Al_sc_Litt3200\ttest\n150_1b1_Al_sc_Meditron\ttrain\n"
        "102_1b1_Ar_mc_LittC2SE maybe\n"
    )
    dataset = load_dataset(root)
    assert [r.official for r in dataset.recordings] == ["test", None]
    _problem(dataset, "calls 101_1b1_Al_sc_Meditron 101_1b1_Al_sc_Litt3200")
    _problem(dataset, "names 1 recording not here: 150_1b1_Al_sc_Meditron")
    _problem(dataset, "1 recording not in the official split: 102_1b1_Ar_mc_LittC2SE")
    _problem(dataset, "line 3", "maybe")


def test_two_devices_at_once_are_not_matched_by_guess(tmp_path: Path) -> None:
    stems = dict.fromkeys(("101_1b1_Al_mc_AKGC417L", "101_1b1_Al_mc_Litt3200"), "COPD")
    root = write_set(tmp_path, stems)
    (root / "ICBHI_challenge_train_test.txt").write_text("101_1b1_Al_mc_Meditron\ttest\n")
    assert [r.official for r in load_dataset(root).recordings] == [None, None]


def test_values_nobody_knows_are_kept_and_named(tmp_path: Path) -> None:
    root = write_set(tmp_path, {**PAIR, "p9_3k2_Xx_sc_Phone-2": "Covid"})
    dataset = load_dataset(root)
    assert dataset.recordings[-1].device == "Phone-2"
    assert dataset.recordings[-1].diagnosis == "Covid"
    _problem(dataset, "device 'Phone-2' of 1 recording")
    _problem(dataset, "location 'Xx'")
    _problem(dataset, "diagnosis 'Covid'")


# ---- bad files


def test_each_bad_file_has_its_line_and_the_good_ones_remain(tmp_path: Path) -> None:
    root = write_set(tmp_path, PAIR)
    audio = root / "audio_and_txt_files"
    (audio / "101_1b2_Al_sc_Meditron.wav").write_bytes(b"")
    (audio / "101_1b3_Al_sc_Meditron.wav").write_text("this is a web page")
    (audio / "101_1b4_Al_sc_Meditron.mp3").write_text("x")
    write_audio(audio / "recording one.wav")
    write_audio(audio / "101_1b5_Al_sc_Meditron.flac")
    whole = (audio / "101_1b5_Al_sc_Meditron.flac").read_bytes()
    (audio / "101_1b5_Al_sc_Meditron.flac").write_bytes(whole[: len(whole) // 2])
    (audio / "101_1b6_Al_sc_Meditron.wav").symlink_to("gone")
    (audio / "107_1b1_Al_sc_Meditron.txt").write_text("0 1 0 0\n")
    write_audio(audio / "od\nd.wav")
    dataset = load_dataset(root)
    assert [r.stem for r in dataset.recordings] == sorted(PAIR)
    _problem(dataset, "101_1b2", "empty (0 bytes)", "left out")
    _problem(dataset, "101_1b3", "cannot be read", "left out")
    _problem(dataset, "101_1b4", "wav or FLAC")
    _problem(dataset, "101_1b5", "left out")
    _problem(dataset, "101_1b6", "cannot be opened")
    _problem(dataset, "1 annotation without a recording: 107_1b1_Al_sc_Meditron")
    _problem(dataset, "2 audio files left out", "od d.wav", "its name is not")
    assert len(dataset.problems) == 7
    assert not any("\n" in line for line in dataset.problems)


def test_audio_that_is_no_recording_is_counted(tmp_path: Path) -> None:
    root = write_set(tmp_path, PAIR)
    for name in ("a.mp3", "b.ogg", "c.amr", "d.wav"):
        (root / name).write_bytes(b"")
    assert load_dataset(root).problems == (
        f"3 audio files left out, e.g. '{root / 'a.mp3'}': recordings are wav or FLAC",
        f"'{root / 'd.wav'}' is left out: its name is not "
        "<patient>_<index>_<location>_<mode>_<device>",
    )


@pytest.mark.parametrize("kind", ["missing", "file", "empty", "uri"])
def test_no_data_set(tmp_path: Path, kind: str) -> None:
    path, message = {
        "missing": (tmp_path / "gone", "does not exist: give the folder"),
        "file": (tmp_path / "data.zip", "is a file: give the folder"),
        "empty": (tmp_path, "no recordings in"),
        "uri": ("s3://bucket/icbhi", r"cannot be read from s3:// here"),
    }[kind]
    (tmp_path / "data.zip").write_text("x")
    with pytest.raises(UserError, match=message) as caught:
        load_dataset(path)
    assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_opened_is_named_as_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, given = write_set(tmp_path, PAIR), os.scandir

    def scandir(path: Path) -> object:
        if path != root:
            raise PermissionError(13, "Permission denied")
        return given(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(UserError, match=r"^no recordings in .*cannot be opened: Permission"):
        load_dataset(root)


def test_recordings_without_diagnoses(tmp_path: Path) -> None:
    root = write_set(tmp_path, PAIR)
    with pytest.raises(UserError, match=r"but no patient_diagnosis\.csv.*give '") as caught:
        load_dataset(root / "audio_and_txt_files")
    assert str(root) in str(caught.value)
    (root / "patient_diagnosis.csv").unlink()
    with pytest.raises(UserError, match="put the data set's table"):
        load_dataset(root)
    (root / "metadata.csv").write_text("patient,age,diagnosis\n101,3,URTI\n")
    with pytest.raises(UserError, match=r"if metadata\.csv has them, copy it to patient_diag"):
        load_dataset(root)


def test_nothing_usable(tmp_path: Path) -> None:
    root = write_set(tmp_path, PAIR)
    (root / "patient_diagnosis.csv").write_text("500,COPD\n")
    with pytest.raises(UserError, match=r"none of the 2 recordings .*: .*101.*no diagnosis"):
        load_dataset(root)


# ---- annotations


def test_bad_annotation_lines(tmp_path: Path) -> None:
    root = write_set(tmp_path, PAIR)
    (root / "audio_and_txt_files" / "101_1b1_Al_sc_Meditron.txt").write_text(
        "0.0\t0.4\t0\t1\r\n0.4\t0.6\t0\nstart\tend\tx\ty\n0.8\t0.6\t0\t0\n"
        "0.5\t0.6\t2\t0\n0.6\tnan\t0\t0\n\n0.7\t1.5\t1\t1\n2.0\t2.5\t0\t0\n"
    )
    dataset = load_dataset(root)
    cycles = dataset.recordings[0].cycles
    assert [(c.start, c.end, c.crackle, c.wheeze) for c in cycles] == [
        (0.0, 0.4, False, True),
        (0.7, 1.0, True, True),
    ]
    for number, words in (
        (2, "has 3 cells, not 4"),
        (3, "2 times in 1 annotation: start, end, crackle and wheeze must be numbers"),
        (4, "below end"),
        (5, "0 or 1"),
        (8, "cut there"),
        (9, "starts at 2 s"),
    ):
        _problem(dataset, "101_1b1_Al_sc_Meditron.txt", f"line {number}", words)
    assert len(dataset.problems) == 6


def test_an_empty_annotation_is_named(tmp_path: Path) -> None:
    root = write_set(tmp_path, PAIR)
    (root / "audio_and_txt_files" / "101_1b1_Al_sc_Meditron.txt").write_text("\n")
    _problem(load_dataset(root), "101_1b1_Al_sc_Meditron.txt holds no cycles")


FIELD = st.one_of(
    st.floats(-1, 30).map(repr), st.sampled_from(["0", "1", "nan", "inf", "x", "", "1e999", "２"])
)
LINE = st.lists(FIELD, max_size=6).map("\t".join)


@given(lines=st.lists(st.one_of(LINE, st.text(max_size=20)), max_size=12))
def test_any_annotation_gives_sound_cycles(lines: list[str]) -> None:
    cycles, problems = parse_cycles("\n".join(lines), seconds=20.0)
    for cycle in cycles:
        assert 0 <= cycle.start < cycle.end <= 20
    assert list(cycles) == sorted(cycles, key=lambda cycle: (cycle.start, cycle.end))
    assert not any("\n" in note.text for note in problems)
    full = [line for line in "\n".join(lines).splitlines() if line.strip()]
    assert len(cycles) <= len(full)
    assert len(cycles) == len(full) or problems


CYCLE = st.tuples(st.integers(0, 99), st.integers(1, 99), st.booleans(), st.booleans())


@given(
    rows=st.lists(CYCLE, max_size=12, unique_by=lambda row: row[:2]),
    separator=st.sampled_from(["\t", " ", "  \t"]),
)
def test_every_good_line_is_read(rows: list[tuple[int, int, bool, bool]], separator: str) -> None:
    text = "\r\n".join(
        separator.join([f"{a / 10}", f"{(a + b) / 10}", str(int(c)), str(int(w))])
        for a, b, c, w in rows
    )
    cycles, _ = parse_cycles(text, seconds=20.0)
    expected = sorted((a / 10, (a + b) / 10, c, w) for a, b, c, w in rows)
    found = sorted((cycle.start, cycle.end, cycle.crackle, cycle.wheeze) for cycle in cycles)
    assert found == expected


PATIENTS = st.dictionaries(
    st.from_regex(r"[0-9]{3}", fullmatch=True), st.sampled_from(DIAGNOSES), min_size=1, max_size=8
)


@settings(max_examples=60)
@given(
    table=PATIENTS,
    separator=st.sampled_from([",", "\t", ";", ", ", " "]),
    header=st.sampled_from([None, ("patient", "diagnosis"), ("Patient_ID", "Label")]),
    line_end=st.sampled_from(["\n", "\r\n", "\n\n"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    tail=st.booleans(),
)
def test_any_shape_of_diagnosis_table(
    tmp_path_factory: pytest.TempPathFactory,
    table: dict[str, str],
    separator: str,
    header: tuple[str, str] | None,
    line_end: str,
    encoding: str,
    tail: bool,
) -> None:
    rows = [*([header] if header else []), *table.items()]
    text = line_end.join(separator.join(row) for row in rows) + (line_end if tail else "")
    path = tmp_path_factory.mktemp("tables") / "patient_diagnosis.csv"
    path.write_bytes(text.encode(encoding))
    read = read_diagnoses([path])
    assert read.values == table
    assert read.problems == ()


@settings(max_examples=60)
@given(data=st.binary(max_size=300))
def test_any_bytes_are_a_table_without_a_traceback(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.mktemp("tables") / "patient_diagnosis.csv"
    path.write_bytes(data)
    read = read_diagnoses([path])
    assert all(key.isalnum() for key in read.values)
