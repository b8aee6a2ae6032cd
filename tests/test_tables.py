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

from resp_tune.data.discovery import Layout, parse_stem
from resp_tune.data.labels import Labels, read_labels
from resp_tune.data.metadata import DIAGNOSES, canonical_diagnosis


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
    rng = random.Random(seed)  # noqa: S311
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
            told = any("without a header" in line for line in found.problems)
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


@settings(max_examples=500, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32))
def test_no_table_gives_a_wrong_label_or_age(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    check_tables(tmp_path_factory.getbasetemp(), seed)
