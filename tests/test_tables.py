"""Tables and annotations as people write them: read as a careful person would, or refused."""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.small_sets import write_set

from resp_tune.data.dataset import load_dataset
from resp_tune.data.discovery import Layout, parse_stem
from resp_tune.data.labels import Labels, read_labels
from resp_tune.data.metadata import DIAGNOSES, Person, canonical_diagnosis
from resp_tune.errors import UserError


def read(
    folder: Path, patients: Sequence[str], diagnoses: bytes | None, people: bytes | None = None
) -> Labels:
    """Read tables of the given bytes for a recording of each patient."""
    layout = Layout()
    for content, name, paths in (
        (diagnoses, "patient_diagnosis.csv", layout.diagnoses),
        (people, "demographic_info.txt", layout.demographics),
    ):
        if content is not None:
            (folder / name).write_bytes(content)
            paths.append(folder / name)
    names = {}
    for patient in patients:
        name = parse_stem(f"{patient}_1b1_Al_sc_Meditron")
        assert name is not None
        names[folder / f"{patient}_1b1_Al_sc_Meditron.wav"] = name
    return read_labels(layout, names)


TRIO = ("101", "102", "103")
ALL = {"101": "COPD", "102": "URTI", "103": "Healthy"}


def rows(template: str, separator: str = "\n") -> str:
    """Fill a row for each patient: `{p}`, `{d}`, and `{n}`, which counts from 0."""
    filled = [template.format(p=p, d=d, n=n) for n, (p, d) in enumerate(ALL.items())]
    return separator.join(filled) + "\n"


# ---- what is read


@pytest.mark.parametrize(
    "text",
    [
        rows("{p},{d}"),
        rows("{d},{p}"),
        rows('"{p}","{d}"'),
        rows("'{p}','{d}'"),
        rows("{p};{d}", "\r\n"),
        rows("{p},{d}", "\r"),
        rows("{p},{d},"),
        rows("{p}.0,\u00a0{d} "),
        "Patient;Diagnose\n" + rows("{p},0;{d}"),
        rows("{p}\u200b,\u200e{d}\u2060"),
        "HASTA NO;TANI;YAŞ\n" + rows("{p};{d};4{n}"),
        rows("{p} {d}"),
        rows("{p}\t{d}"),
        "sep=;\n" + rows("{p};{d}"),
        "\n\n# made by hand, today\n" + rows("{p},{d}", "\n\n"),
        "Patient,Diagnosis\n,\n" + rows("{p},{d}") + "Total,3\n,\n",
        "#Patient,Diagnosis\n" + rows("{p},{d}"),
        ",Patient No,Diagnosis\n" + rows("{n},{p},{d}"),
        "Unnamed: 0,Participant,Disease\n" + rows("{n},{p},{d}"),
        "No,Case,Disease\n" + rows("{n},{p},{d}"),
        "id,code,diagnosis\n" + rows("{n},{p},{d}"),
        "Name,Diagnosis\n" + rows("{p},{d}"),
        "No,Name,Diagnosis\n" + rows("{n},{p},{d}"),
        "Diagnose;Alter;Patienten-Nr.\n" + rows("{d};4{n},5;{p}"),
        "Paciente;Diagnóstico;Edad\n" + rows("{p};{d};4{n},5"),
        "病人\t年龄\t诊断\n" + rows("{p}\t4{n}\t{d}"),
        "Patient ID   Diagnosis".replace(" ID", "ID") + "\n" + rows("{p}       {d}"),
        '"patient" "diagnosis"\n' + rows('"{p}" "{d}"'),
        "patient,diagnosis code,diagnosis\n" + rows("{p},J4{n},{d}"),
        "patient,age at diagnosis,diagnosis\n" + rows("{p},4{n},{d}"),
        'Patient,Remark,Diagnosis\n' + rows('{p},"late, ""COPD""\n; cough",{d}'),
        "Patient name,Patient ID,Diagnosis\n" + rows("Smith,{p},{d}"),
        "patient,diagnosis\n" + rows("{p},{d}") + "patient,diagnosis\n" + rows("{p},{d}"),
    ],
)  # fmt: skip
def test_a_table_is_read_without_a_word(tmp_path: Path, text: str) -> None:
    for encoding in ("utf-8-sig", "utf-16"):
        labels = read(tmp_path, TRIO, text.encode(encoding))
        assert labels.diagnoses == ALL
        assert labels.problems == ()


@pytest.mark.parametrize(
    ("cell", "label"),
    [
        ('"Healthy, later COPD"', "Healthy, later COPD"),
        ('"Healthy ""later COPD"""', 'Healthy "later COPD"'),
        ('"Healthy\nlater COPD"', "Healthy later COPD"),
        ('"Healthy; later COPD"', "Healthy; later COPD"),
        ('"copd "', "COPD"),
    ],
)
def test_a_quoted_cell_is_one_label(tmp_path: Path, cell: str, label: str) -> None:
    text = f"Patient,Diagnosis\n101,{cell}\n102,URTI\n103,Healthy\n"
    assert read(tmp_path, TRIO, text.encode()).diagnoses == {**ALL, "101": label}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Code;Befund\n" + rows("{p};{d}"), "line 1, 'Code, Befund', is taken as a header"),
        ("Patient,Family history\n" + rows("{p},{d}"), "'Family history' is taken as the diagn"),
    ],
)
def test_the_other_of_two_columns_is_taken_and_named(tmp_path: Path, text: str, words: str) -> None:
    labels = read(tmp_path, TRIO, text.encode())
    assert labels.diagnoses == ALL
    (line,) = labels.problems
    assert words in line


# ---- what is left out or refused, and named


@pytest.mark.parametrize(
    ("text", "patients", "words"),
    [
        ("101,COPD, Pneumonia\n102,URTI\n103,Healthy\n", "102 103", "line 1 has 3 cells, not 2"),
        ("Patient,Diagnosis,Ward\n101,COPD,A\n102,URTI\n103,Healthy,B\n", "101 103", "line 3"),
        ("101,'COPD, mild'\n102,URTI\n103,Healthy\n", "102 103", "line 1 has 3 cells"),
        ("101,Healthy\nlater COPD\n102,URTI\n103,Healthy\n", "102 103", "rest of line 1"),
        ("101,COPD\n102,URTI\n103,Healthy\n101,Asthma\n", "102 103", "'COPD' in patient_d"),
        ("101,COPD\n102,URTI\n103,Healthy\n0101,Asthma\n", "102 103", "several spellings"),
        ("101,COPD\n102,-\n103,n/a\n", "101", "line 2: patient 102 has no diagnosis"),
        ("101,COPD\n102 Lung cancer\n103,Healthy\n", "101 103", "line 2 has 1 cell, not 2"),
        ("Patient\tWard\tDiagnosis\n101\tA\tCOPD\n102\t\tURTI\tAsthma\n", "101", "line 3 has 4"),
        ("Study X\nPatient,Diagnosis\n" + rows("{p},{d}"), "101 102 103", "above the header"),
    ],
)
def test_a_row_that_is_not_clear_is_named_and_not_used(
    tmp_path: Path, text: str, patients: str, words: str
) -> None:
    labels = read(tmp_path, TRIO, text.encode())
    assert labels.diagnoses == {patient: ALL[patient] for patient in patients.split()}
    assert sum(words in line for line in labels.problems) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (rows("{p},{d},late"), "it has 3 columns and no known header, but '101, COPD, late'"),
        (rows("{n},{p},{d}"), "it has 3 columns and no known header"),
        ("Patient ID,Sex,Category\n" + rows("{p},F,{d}"), "'Patient ID, Sex, Category'"),
        ("Patient,Age\n" + rows("{p},4{n}"), "'Patient, Age' no column is that of the diagnosis"),
        ("File,Diagnosis,Ward\n" + rows("x{n},{d},A"), "no column is that of the patient"),
        ("Code,Number,Diagnosis\n" + rows("{p},{p},{d}"), "several columns may be"),
        ("Patient,Diagnosis\n" + rows("#{p},{d}"), "rows begin with #, as comments do: '#101"),
        ("Patient,,Diagnosis\nNo,Code,\n" + rows("10{n},{p},{d}"), "several columns may be"),
        ("version https://git-lfs.github.com/spec/v1\nsize 1\n", "a git-lfs pointer: run git lfs"),
        ("Patient,Diagnosis 1,Diagnosis 2\n" + rows("{p},{d},"), "'Patient, Diagnosis 1, Diag"),
        ("Patient,Diagnosis,Final diagnosis\n" + rows("{p},{d},Asthma"), "'Final diagnosis' diff"),
        ("Patient,Disease,Diagnosis\n" + rows("{p},Asthma,{d}"), "columns 'Disease' and 'Diagn"),
        ("Patient,Diagnosis\n101,COPD\nDiagnosis,Patient\nURTI,102\n", "line 3 is a second"),
        ("patient diagnosis\n" + rows("{n} {p} {d}"), "lines 2, 3, 4 have not 2 cells"),
        ('101,COPD\n102,"URTI\n103,Healthy\n', "in line 2 a quotation mark is not closed"),
        ('101,"COPD" mild\n102,URTI\n', "in line 1 a quotation mark"),
        ("Patient,Diagnosis\n", "no rows below its header 'Patient, Diagnosis'"),
        ("101\n102\n", "one column only"),
        ("", "it is empty"),
    ],
)
def test_a_table_that_is_not_clear_is_refused(tmp_path: Path, text: str, words: str) -> None:
    labels = read(tmp_path, TRIO, text.encode())
    assert labels.diagnoses == {}
    assert "patients 101, 102, 103 have no diagnosis" in labels.problems[0]
    (line,) = labels.problems[1:]
    assert line.startswith("patient_diagnosis.csv is not used: ")
    assert words in line
    write_set(tmp_path, {f"{p}_1b1_Al_sc_Meditron": d for p, d in ALL.items()})
    (tmp_path / "patient_diagnosis.csv").write_text(text)
    with pytest.raises(UserError) as error:
        load_dataset(tmp_path)
    assert words in str(error.value)


# ---- people


@pytest.mark.parametrize(
    "text",
    [
        "101 3 F NA 19 99\n102 0.75 M NA 9.8 73\n103 NA NA 33 NA NA\n",
        "101;3;F;20,1;;\r\n102;0,75;M;20,1;;\r\n103;;;20,1;;1\r\n",
        "101,3,female\n102,0.75,Male\n103,NA,\n",
        "Patient,Weight,Sex,Age\n101,60,F,3\n102,61,M,.75\n103,62,,\n",
        ",Subject,gender,Age (years),BMI\n0,101,w,3,20\n1,102,m,0.75,20\n2,103,-,?,20\n",
        'Patient,Age,Sex\n101,3,F\n102,"0,75",M\n103,NA,NA\n',
        "Alter;Geschlecht;Patient\n3;weiblich;101\n0,75;männlich;102\n;;103\n",
        "Patient;Alter (Jahre);Geschlecht\n101;3;w\n102;0,75;m\n103;;\n",
        "Patient,Age [y],Sex,Unit\n101,3,F,years\n102,.75,M,Y\n103,,,\n",
        "Row,Code,Age,Sex,Weight\n1,101,3,F,60\n2,102,0.75,M,60\n3,103,NA,NA,60\n",
    ],
)
def test_ages_and_sexes_are_read_by_the_header_or_in_the_order_of_icbhi(
    tmp_path: Path, text: str
) -> None:
    labels = read(tmp_path, TRIO, rows("{p},{d}").encode(), text.encode())
    assert labels.people == {
        "101": Person(3.0, "F"), "102": Person(0.75, "M"), "103": Person(None, None)
    }  # fmt: skip
    assert labels.problems == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("101,F,3\n102,M,4\n", "no known header, but '101, F, 3'"),
        ("0,101,3,F\n1,102,4,M\n", "no known header, but '0, 101, 3, F'"),
        ("101,1,F,3\n102,2,M,4\n103,3,F,5\n", "no known header"),
        ("Codice,Peso,Anni\n101,60,3\n102,70,4\n", "no known header, but 'Codice, Peso, Anni'"),
        ("Patient,Age,Age (years)\n101,36,3\n102,48,4\n", "'Age' and 'Age (years)' differ"),
        ("Patient,Age (months),Weight\n101,36,20\n102,48,20\n", "that of the age or sex"),
        ("Everything about our patients.\nAsk us first.\n", "is not used"),
    ],
)
def test_a_table_of_people_that_is_not_clear_gives_no_age(
    tmp_path: Path, text: str, words: str
) -> None:
    labels = read(tmp_path, TRIO, rows("{p},{d}").encode(), text.encode())
    assert labels.people == {}
    (line,) = labels.problems
    assert line.startswith("demographic_info.txt is not used: ")
    assert words in line


@pytest.mark.parametrize(
    ("text", "people", "words"),
    [
        ("Patient,Months,Sex\n101,36,F\n102,48,M\n103,60,F\n", (None, "F"), "that of the age"),
        ("Patient,Age,Age unit,Sex\n101,6,m,F\n102,4,y,M\n", (None, "F"), "some are in 'm'"),
        ("Patient,Age,In,Sex\n101,6,years,F\n102,4,weeks,M\n", (None, "F"), "in 'weeks'"),
        ("Paciente,Edad,Sexo\n101,3,H\n102,4,M\n103,5,M\n", (3.0, None), "H, M"),
        ("Paciente,Edad,Sexo\n101,3,M\n102,4,V\n103,5,M\n", (3.0, None), "M, V"),
        ("Patient,Age,Sex\n101,3,kobieta\n102,4,2\n", (3.0, None), "2, KOBIETA"),
        ("Patient,Age,Sex\n101,40,5,F\n102,4,M\n103,5,F\n", None, "line 2 has 4 cells"),
        ("Patient,Age,Sex\n101,3 years,F\n102,4,M\n103,5,F\n", None, "age '3 years' is not"),
        ("Patient,Age,Sex\n101,1e1,F\n102,4,M\n103,5,F\n", None, "age '1e1' is not"),
        ("Patient,Age,Sex\n101,1968,F\n102,4,M\n103,5,F\n", None, "age '1968' is not"),
        ("101,72,F,40\n102,72,M,40\n103,72,F,40\n", (72.0, "F"), "no header"),
    ],
)
def test_no_age_is_taken_from_a_column_of_another_name(
    tmp_path: Path, text: str, people: tuple[float | None, str | None] | None, words: str | None
) -> None:
    labels = read(tmp_path, TRIO, rows("{p},{d}").encode(), text.encode())
    assert labels.people.get("101") == (None if people is None else Person(*people))
    assert [line for line in labels.problems if words and words in line] or not words


def test_an_empty_cell_contradicts_no_other_row(tmp_path: Path) -> None:
    text = "Patient,Age,Sex\n101,3,\n101,,F\n102,4,M\n102,5,M\n103,,\n103,6,M\n103,6,\n"
    labels = read(tmp_path, TRIO, rows("{p},{d}").encode(), text.encode())
    assert labels.people == {"101": Person(3.0, "F"), "103": Person(6.0, "M")}
    (line,) = labels.problems
    assert "line 5: patient 102 is '5.0 M' here and '4.0 M'" in line


def test_ages_in_the_table_of_diagnoses_are_read(tmp_path: Path) -> None:
    text = "Patient,Age,Sex,Diagnosis\n101,3,F,COPD\n102,90+,M,URTI\n103,,M,Healthy\n"
    write_set(tmp_path, {f"{p}_1b1_Al_sc_Meditron": d for p, d in ALL.items()})
    (tmp_path / "patient_diagnosis.csv").write_text(text)
    dataset = load_dataset(tmp_path)
    assert [(r.diagnosis, r.age, r.sex) for r in dataset.recordings] == [
        ("COPD", 3.0, "F"), ("URTI", None, None), ("Healthy", None, "M")
    ]  # fmt: skip
    assert dataset.problems == ("no age of 1 patient: 103", "no age and sex of 1 patient: 102")


# ---- patients that are written differently


@pytest.mark.parametrize(
    ("files", "table", "matched"),
    [
        ("085 086 101", "85 86 101", "085 is 85, 086 is 86"),
        ("P101 P102", "p101 p102", "P101 is p101, P102 is p102"),
        ("85 86", "085 086", "85 is 085, 86 is 086"),
        ("P007 8", "p7 8", "P007 is p7"),
    ],
)
def test_patients_written_differently_are_matched_one_to_one_and_named(
    tmp_path: Path, files: str, table: str, matched: str
) -> None:
    text = "".join(f"{name},{DIAGNOSES[i]}\n" for i, name in enumerate(table.split()))
    labels = read(tmp_path, files.split(), text.encode())
    assert labels.diagnoses == dict(zip(files.split(), DIAGNOSES, strict=False))
    (line,) = labels.problems
    assert f"in patient_diagnosis.csv: {matched} there" in line


def test_patients_that_differ_only_in_zeros_are_not_confused(tmp_path: Path) -> None:
    labels = read(tmp_path, ("7", "007", "8"), b"7,COPD\n08,URTI\n")
    assert labels.diagnoses == {"8": "URTI"}
    assert "patients 007, 7 have no diagnosis" in labels.problems[0]
    assert "007, 7 differ only in case or zeros" in labels.problems[1]
    labels = read(tmp_path, ("7", "007"), b"7,COPD\n007,URTI\n")
    assert labels.diagnoses == {"7": "COPD", "007": "URTI"}
    assert labels.problems == ()


@pytest.mark.parametrize("prefix", ["P", "ICBHI"])
def test_a_near_miss_of_other_letters_is_named_and_not_used(tmp_path: Path, prefix: str) -> None:
    labels = read(tmp_path, TRIO, rows(prefix + "{p},{d}").encode())
    assert labels.diagnoses == {}
    assert labels.problems[0].endswith(
        f"patients 101, 102, 103 have no diagnosis; the table has {prefix}101, {prefix}102, "
        f"{prefix}103"
    )


def test_row_numbers_that_are_patients_too_are_not_their_column(tmp_path: Path) -> None:
    patients = ("1", "2", "3", "4")
    text = ",Patient,Diagnosis\n0,3,COPD\n1,1,URTI\n2,4,Flu\n3,2,Healthy\nTotal,Total,Total\n"
    people = b"1,64,F,3\n2,62,M,1,COPD\n3,60,M,4\n4,61,F,2\n"
    labels = read(tmp_path, patients, text.encode(), people)
    assert labels.diagnoses == {"1": "URTI", "2": "Healthy", "3": "COPD", "4": "Flu"}
    assert labels.people == {}
    assert [line for line in labels.problems if "no known header, but '1, 64, F, 3'" in line]


@pytest.mark.parametrize(
    "text",
    [
        ",Diagnosis\n0,COPD\n1,URTI\n2,Flu\n",
        ",Diagnosis\n1,COPD\n2,URTI\n3,Flu\n",
        "No,Diagnosis\n0,COPD\n1,URTI\n2,Flu\n",
        "No,Name,Diagnosis\n1,3,COPD\n2,2,URTI\n3,1,Flu\n",
        "0,COPD\n1,URTI\n2,Flu\n",
    ],
)
def test_row_numbers_are_not_taken_for_patients(tmp_path: Path, text: str) -> None:
    labels = read(tmp_path, ("1", "2", "3"), text.encode())
    assert labels.diagnoses == {}
    assert labels.problems[1].startswith("patient_diagnosis.csv is not used: i")


def test_a_thousand_is_not_taken_for_one(tmp_path: Path) -> None:
    labels = read(tmp_path, ("1", "2"), b"Patient;Diagnosis\n1.000;COPD\n2;URTI\n")
    assert labels.diagnoses == {"2": "URTI"}
    assert "line 2: '1.000, COPD' does not name a patient" in labels.problems[1]


def test_tables_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    write_set(tmp_path, {f"{p}_1b1_Al_sc_Meditron": d for p, d in ALL.items()})
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "patient_diagnosis.csv").write_text("101,URTI\n")
    conflict = f"'COPD' in {tmp_path.name}/patient_diagnosis.csv line 1"
    (line,) = (line for line in load_dataset(tmp_path).problems if "neither" in line)
    assert line.startswith("old/patient_diagnosis.csv line 1: patient 101")
    assert conflict in line


def test_patients_of_a_table_without_recordings_are_one_line(tmp_path: Path) -> None:
    others = "".join(f"{n},COPD\n" for n in range(300, 320))
    labels = read(tmp_path, TRIO, (rows("{p},{d}") + others).encode())
    assert labels.diagnoses == ALL
    assert labels.problems == (
        "20 of 23 patients in patient_diagnosis.csv have no recording: 300, 301, 302 and 17 more",
    )


# ---- names of files


@pytest.mark.parametrize("name", ["patient_diagnosis.txt", "Patient_Diagnosis.TSV"])
def test_the_layout_of_other_codes_is_read(tmp_path: Path, name: str) -> None:
    stems = {f"{p}_1b1_Al_sc_Meditron": d for p, d in ALL.items()}
    root = write_set(tmp_path, stems, audio="audio_test_data")
    (root / "patient_diagnosis.csv").unlink()
    (root / name).write_text(rows("{p}\t{d}"))
    (root / "official_split.txt").write_text(
        "".join(f"{stem}\t{'train' if n else 'test'}\n" for n, stem in enumerate(stems))
    )
    (root / "metadata.txt").write_text("101\t3\tF\n102\t4\tM\n103\t5\tF\n")
    (root / "patient_list_foldwise.txt").write_text("101\t0\n102\t1\n103\t2\n")
    dataset = load_dataset(root)
    found = [(r.diagnosis, r.age, r.sex, r.official) for r in dataset.recordings]
    assert found == [
        ("COPD", 3.0, "F", "test"), ("URTI", 4.0, "M", "train"), ("Healthy", 5.0, "F", "train")
    ]  # fmt: skip
    (line,) = dataset.problems
    assert line.startswith("patient_list_foldwise.txt is not used")


@pytest.mark.parametrize(
    "text",
    [
        "File name,Set\n{a}.wav,Train\n{b}.WAV,TEST\n",
        "audio/{a}.wav\ttrain\nC:\\data\\{b}.wav\ttest\n",
        ",Split,Recording\n0,training,{a}\n1,testing,{b}\n",
        "test;{b}\ntrain;{a}\n",
    ],
)
def test_the_official_split_is_read_by_its_header_or_its_values(tmp_path: Path, text: str) -> None:
    stems = ("101_1b1_Al_sc_Meditron", "102_1b1_Al_sc_Meditron")
    root = write_set(tmp_path, dict.fromkeys(stems, "COPD"))
    (root / "official_split.csv").write_text(text.format(a=stems[0], b=stems[1]))
    dataset = load_dataset(root)
    assert [r.official for r in dataset.recordings] == ["train", "test"]
    assert not any("split" in line for line in dataset.problems if "in both" not in line)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("patient_diagnosis (1).csv", "to use it, rename it to patient_diagnosis.csv"),
        ("patient_diagnosis.csv.txt", "to use it, rename it to patient_diagnosis.csv"),
        ("patient_diagnoses.csv", "to use it, rename it to patient_diagnosis.csv"),
        ("Patient Diagnosis.xlsx", "to use it, save it as patient_diagnosis.csv"),
        ("patient_diagnosis", "to use it, rename it to patient_diagnosis.csv"),
        ("patient_diagnosis.json", "to use it, save it as patient_diagnosis.csv"),
        ("diagnosis.tsv", "to use it, rename it to patient_diagnosis.csv"),
        ("labels.csv", None),
    ],
)
def test_tables_of_other_names_are_named(tmp_path: Path, name: str, hint: str | None) -> None:
    root = write_set(tmp_path, {"101_1b1_Al_sc_Meditron": "COPD"})
    for file in (name, "a.txt", "README.txt"):
        (root / file).write_text(rows("{p},{d}"))
    not_read = f"not read: {name} ({hint}), a.txt" if hint else f"not read: a.txt, {name}"
    assert load_dataset(root).problems == (not_read,)
    (root / "patient_diagnosis.csv").unlink()
    with pytest.raises(UserError) as error:
        load_dataset(root)
    assert (
        f"no patient_diagnosis.csv or ICBHI_Challenge_diagnosis.txt there or below ({not_read})"
        in (str(error.value))
    )


# ---- generated tables

PATIENTS = [str(n) for n in (*range(1, 12), *range(100, 112))] + [
    "007",
    "085",
    "P05",
    "p11",
    "Anna",
]
OWN_WORDS = (
    "COPD, Pneumonia", 'so called "COPD"', "COPD; mild", "Healthy,\nlater COPD", "COPD\tII", "Flu"
)  # fmt: skip
REMARKS = ("", "late", "cough, fever", "Healthy", "COPD", "101", "5", '"?"', "a\nb", "40,5")
PATIENT_WORDS = ("patient", "Patient ID", "Patient No", "subject", "Participant", "Paciente")
DIAGNOSIS_WORDS = ("diagnosis", "Disease", "Label", "class", "Diagnóstico", "Diagnose")
AGE_WORDS = ("Age", "age (years)", "Alter", "Edad")
SEX_WORDS = ("Sex", "gender", "Geschlecht", "Sesso")
SPELLINGS = (str, str, str, str.upper, str.lower, lambda patient: patient.lstrip("0"))


@dataclass(frozen=True)
class Written:
    """A table as some program writes it; `clear`: a careful person knows every row and column."""

    content: bytes
    separator: str
    encoding: str
    columns: list[tuple[str, list[str]]]
    header: bool
    clear: bool

    def by_pandas(self) -> pd.DataFrame:
        return pd.read_csv(
            io.BytesIO(self.content),
            sep=self.separator,
            encoding=self.encoding,
            dtype=str,
            keep_default_na=False,
            skipinitialspace=True,
            index_col=False,
        )


def written(rng: random.Random, columns: list[tuple[str, list[str]]], clear: bool) -> Written:
    number = len(columns[0][1])
    if rng.random() < 0.4:
        first = rng.randrange(2)
        index = [str(i + first) for i in range(number)]
        columns = [*columns, (rng.choice(("", "Unnamed: 0", "index", "Row")), index)]
    if rng.random() < 0.4:
        remarks = [rng.choice(REMARKS) for _ in range(number)]
        columns = [*columns, (rng.choice(("Remark", "Ward", "Notes")), remarks)]
    rng.shuffle(columns)
    separator = rng.choice(",;\t")
    decimal = "," if separator != "," and rng.random() < 0.5 else "."
    rows = [
        [cell.replace(".", decimal) if cell[:1].isdigit() else cell for cell in row]
        for row in zip(*(cells for _, cells in columns), strict=True)
    ]
    if header := rng.random() < 0.8:
        rows.insert(0, [name for name, _ in columns])
    if rng.random() < 0.2:
        broken = rng.randrange(min(1, len(rows) - 1), len(rows))
        rows[broken] = [*rows[broken], "COPD"] if rng.random() < 0.5 else rows[broken][:-1]
        clear = False
    elif rng.random() < 0.2:
        rows = [[*row, ""] for row in rows]
    elif rng.random() < 0.2:
        rows.append(["Total"] * len(columns))
    if rng.random() < 0.2:
        rows.insert(rng.randint(1, len(rows)), [""] * len(columns))
    text = io.StringIO()
    end = rng.choice(("\n", "\r\n", "\n\n", "\r"))
    quoting = csv.QUOTE_ALL if end == "\r" or rng.random() < 0.5 else csv.QUOTE_MINIMAL
    csv.writer(text, delimiter=separator, quoting=quoting, lineterminator=end).writerows(rows)
    encoding = rng.choice(("utf-8", "utf-8-sig", "utf-16", "latin-1"))
    content = text.getvalue().encode(encoding)
    return Written(content, separator, encoding, columns, header, clear and header)


def word(rng: random.Random, known: Sequence[str], *unknown: str) -> str:
    return rng.choice(known if rng.random() < 0.7 else unknown)


def cell_as_read(cell: str) -> str:
    return canonical_diagnosis(" ".join(cell.split()))


def check_tables(folder: Path, seed: int) -> Labels:
    """Write two tables, read them, and compare with what is in them."""
    rng = random.Random(seed)  # noqa: S311  # no secret
    patients = rng.sample(PATIENTS, rng.randint(2, 9))
    spelling = rng.choice(SPELLINGS)
    spelled = [spelling(patient) for patient in patients]
    labels = [rng.choice((*DIAGNOSES, *DIAGNOSES, *OWN_WORDS)) for _ in patients]
    ages = [rng.choice(("3", "0.75", "40.5", "61", "NA", "")) for _ in patients]
    sexes = [rng.choice(("F", "M", "NA", "female", "m")) for _ in patients]
    who, what = word(rng, PATIENT_WORDS, "id", "Code", "X"), word(rng, DIAGNOSIS_WORDS, "Category")
    columns = [(who, spelled), (what, labels)]
    if rng.random() < 0.4:
        columns.append((rng.choice(AGE_WORDS), ages))
    clear = who in PATIENT_WORDS and what in DIAGNOSIS_WORDS and len(set(spelled)) == len(spelled)
    own = written(rng, columns, clear)
    old, sex = word(rng, AGE_WORDS, "Anni", "Months"), rng.choice(SEX_WORDS)
    columns = [
        (who, spelled),
        (old, ages),
        (sex, sexes),
        ("Weight", [str(60 + len(a)) for a in ages]),
    ]
    people = written(rng, columns, clear and old in AGE_WORDS)
    found = read(folder, patients, own.content, people.content)
    for patient, label in zip(patients, labels, strict=True):
        assert found.diagnoses.get(patient, cell_as_read(label)) == cell_as_read(label)
    missing = set(patients) - set(found.diagnoses)
    assert not missing or (found.problems and not own.clear)
    for patient, age, sex in zip(patients, ages, sexes, strict=True):
        person = found.people.get(patient)
        known_age = None if age in ("", "NA") else float(age)
        known_sex = None if sex == "NA" else sex[0].upper()
        if people.clear:
            assert person is not None
            assert (person.age, person.sex) == (known_age, known_sex)
        elif person is not None:
            told = any("no header" in line for line in found.problems)
            assert person.age in (known_age, None) or told
            assert person.sex in (known_sex, None)
        else:
            assert any("demographic_info.txt" in line for line in found.problems) or (
                len(set(spelled)) < len(spelled)  # two patients have become one: 7 and 007
            )
    if own.clear:
        by_pandas = own.by_pandas()
        rows = zip(by_pandas[who], by_pandas[what], strict=True)
        same = {key: cell_as_read(cell) for key, cell in rows}
        for patient, label in found.diagnoses.items():
            assert same[spelling(patient)] == label
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("generated")


@settings(max_examples=300, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_no_table_gives_a_wrong_label_or_age(folder: Path, seed: int) -> None:
    check_tables(folder, seed)
