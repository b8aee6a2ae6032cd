"""The data set's text tables: diagnoses, demographics, the official split."""

from __future__ import annotations

import errno
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, TypeVar

from resp_tune.common.text import shorten

DIAGNOSES = (
    "Asthma",
    "Bronchiectasis",
    "Bronchiolitis",
    "COPD",
    "Healthy",
    "LRTI",
    "Pneumonia",
    "URTI",
)
Side = Literal["train", "test"]
T = TypeVar("T")

_NAMED_LINES = 5  # of one table; a file of another kind would otherwise be named line by line
_MISSING = ("", "na", "n/a", "nan", "none", "null", "?")
_CANONICAL = {name.lower(): name for name in DIAGNOSES}
_PATIENT = re.compile(r"[A-Za-z0-9]+", re.ASCII)
_PATIENT_HEADERS = ("patient", "patientid", "patientnumber", "pid", "id", "subject", "subjectid")
_DIAGNOSIS_HEADERS = ("diagnosis", "disease", "label", "class", "condition", "diagnose")


@dataclass(frozen=True)
class Table(Generic[T]):
    """`values` by key, and a line for each row that could not be used or contradicts another.

    `conflicts` are keys that two rows give different values; they have none in `values`.
    """

    values: dict[str, T]
    conflicts: frozenset[str]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Person:
    """Age in years and sex (F or M) of a patient; None where the table has no answer."""

    age: float | None
    sex: str | None


def read_text(path: Path) -> str:
    """A text file in UTF-8 or UTF-16, with or without a byte order mark, else in Latin-1.

    Raises OSError, also for what would be waited for, such as a pipe.
    """
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "it is not a file")
    data = path.read_bytes()
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", errors="replace")
    if b"\0" in data[:200]:
        order = "utf-16-le" if data[1:2] == b"\0" else "utf-16-be"
        return data.decode(order, errors="replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def read_diagnoses(paths: Sequence[Path]) -> Table[str]:
    """Diagnosis by patient, `101,URTI` a line, with commas, tabs, semicolons or spaces.

    With a header the columns are found by its names. Spelling of the eight known diagnoses is
    settled to ICBHI's, whatever the case; others are kept as they are.
    """

    def parse(rows: list[tuple[int, list[str]]]) -> Iterator[tuple[int, str, str | ValueError]]:
        who, what = 0, 1
        if rows and (columns := _header(rows[0][1])):
            (who, what), rows = columns, rows[1:]
        for number, fields in rows:
            if len(fields) <= max(who, what):
                yield number, "", _bad(fields, "is not a patient and a diagnosis")
                continue
            patient, diagnosis = _patient(fields[who]), fields[what]
            if not _PATIENT.fullmatch(patient):
                yield number, "", _bad(fields, "does not start with a patient")
            elif diagnosis.lower() in _MISSING:
                yield number, "", ValueError(f"patient {patient} has no diagnosis")
            else:
                yield number, patient, _CANONICAL.get(diagnosis.lower(), diagnosis)

    return _merge(paths, parse, "patient")


def read_people(paths: Sequence[Path]) -> Table[Person]:
    """Age and sex by patient: `101 3 F NA 19 99` a line, in that order, NA for what is missing."""

    def parse(rows: list[tuple[int, list[str]]]) -> Iterator[tuple[int, str, Person | ValueError]]:
        for number, fields in rows:
            patient = _patient(fields[0])
            if _squeeze(fields[0]) in _PATIENT_HEADERS:
                continue
            if len(fields) < 3 or not _PATIENT.fullmatch(patient):
                yield number, "", _bad(fields, "is not a patient, age and sex")
                continue
            try:
                yield number, patient, Person(_age(fields[1]), _sex(fields[2]))
            except ValueError as error:
                yield number, "", ValueError(f"patient {patient}: {error}")

    return _merge(paths, parse, "patient")


def read_official(paths: Sequence[Path]) -> Table[Side]:
    """The challenge's side by recording: `<stem>` and `train` or `test` a line."""

    def parse(rows: list[tuple[int, list[str]]]) -> Iterator[tuple[int, str, Side | ValueError]]:
        for number, fields in rows:
            side = fields[1].lower() if len(fields) == 2 else ""
            if side == "train" or side == "test":
                yield number, fields[0].removesuffix(".wav"), "train" if side == "train" else "test"
            else:
                yield number, "", _bad(fields, "is not a recording and train/test")

    return _merge(paths, parse, "recording")


def _merge(
    paths: Sequence[Path],
    parse: Callable[[list[tuple[int, list[str]]]], Iterator[tuple[int, str, T | ValueError]]],
    key_name: str,
) -> Table[T]:
    values: dict[str, T] = {}
    conflicts: set[str] = set()
    problems: list[str] = []
    for path in paths:
        try:
            text = read_text(path)
        except OSError as error:
            problems.append(f"'{path}' cannot be read: {error.strerror}")
            continue
        bad: list[str] = []
        for number, key, value in parse(list(_rows(text))):
            if isinstance(value, ValueError):
                bad.append(f"{path.name} line {number}: {value}; the line is left out")
            elif values.setdefault(key, value) != value and key not in conflicts:
                conflicts.add(key)
                bad.append(
                    f"{path.name} line {number}: {key_name} {key} is '{_say(value)}' here and "
                    f"'{_say(values[key])}' above; neither is used"
                )
        problems += bad[:_NAMED_LINES]
        if len(bad) > _NAMED_LINES:
            problems.append(f"{path.name}: {len(bad) - _NAMED_LINES} more lines like these")
    kept = {key: value for key, value in values.items() if key not in conflicts}
    return Table(kept, frozenset(conflicts), tuple(problems))


def _rows(text: str) -> Iterator[tuple[int, list[str]]]:
    """Line number from 1 and stripped fields of each line that is not blank."""
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    # A decimal comma in one line does not make a table comma-separated: half the lines must agree.
    separator = next((s for s in "\t,;" if sum(s in x for _, x in lines) * 2 >= len(lines)), None)
    for number, line in lines:
        yield number, [field.strip().strip("\"'").strip() for field in line.split(separator)]


def _header(fields: Sequence[str]) -> tuple[int, int] | None:
    """The columns of patient and diagnosis when a first line holds names instead of values."""
    names = [_squeeze(field) for field in fields]
    who = next((i for i, name in enumerate(names) if name in _PATIENT_HEADERS), None)
    what = next((i for i, name in enumerate(names) if name in _DIAGNOSIS_HEADERS), None)
    if who is None and what is None:
        return None
    if who is None:
        who = 0 if what != 0 else 1
    if what is None:
        what = who + 1
    return who, what


def _squeeze(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _patient(text: str) -> str:
    """`101`, also from a spreadsheet's `101.0`."""
    return re.sub(r"\.0+$", "", text)


def _age(text: str) -> float | None:
    if text.lower() in _MISSING:
        return None
    try:
        age = float(text)
    except ValueError:
        age = math.nan
    if not 0 <= age <= 130:
        raise ValueError(f"age '{shorten(text)}' is not a number of years")
    return age


def _sex(text: str) -> str | None:
    if text.lower() in _MISSING:
        return None
    sex = {"f": "F", "female": "F", "m": "M", "male": "M"}.get(text.lower())
    if sex is None:
        raise ValueError(f"sex '{shorten(text)}' is not F, M or NA")
    return sex


def _say(value: object) -> str:
    return f"{value.age} {value.sex}" if isinstance(value, Person) else str(value)


def _bad(fields: Sequence[str], reason: str) -> ValueError:
    return ValueError(f"'{shorten(' '.join(fields))}' {reason}")
