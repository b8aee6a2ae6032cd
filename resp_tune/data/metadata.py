"""The text files of a data set: diagnoses, demographics, official split and annotations."""

from __future__ import annotations

import errno
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Generic, Literal, TypeVar

from resp_tune.common.text import join_names, plural, shorten
from resp_tune.data.discovery import Name, parse_stem

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
# Seconds. The annotators' clock and the audio's length are rounded differently.
END_TOLERANCE = 0.05
OfficialSplit = Literal["train", "test"]
T = TypeVar("T")

_MAX_PROBLEMS = 5  # of one table; a file of another kind would otherwise be named line by line
_MISSING = ("", "na", "n/a", "nan", "none", "null", "?")
_PATIENT = re.compile(r"[A-Za-z0-9]+", re.ASCII)
_PATIENT_HEADERS = ("patient", "patientid", "patientnumber", "pid", "id", "subject", "subjectid")
_DIAGNOSIS_HEADERS = ("diagnosis", "disease", "label", "class", "condition", "diagnose")


@dataclass(frozen=True)
class Table(Generic[T]):
    """The values of a table by key, and a line for each row that is bad or contradicts another.

    `conflicts` are keys with different values in two rows; they are not in `values`.
    """

    values: dict[str, T]
    conflicts: frozenset[str]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Person:
    """Age in years and sex (F or M) of a patient; None if unknown."""

    age: float | None
    sex: str | None

    def __str__(self) -> str:
        return f"{self.age} {self.sex}"


def canonical_diagnosis(name: str) -> str:
    """Return one of the eight known diagnoses as ICBHI spells it, and others unchanged."""
    return next((known for known in DIAGNOSES if known.lower() == name.lower()), name)


def read_text(path: Path) -> str:
    """Read a text file in UTF-8 or UTF-16, with or without a byte order mark, else in Latin-1.

    Raises `OSError`, also for a pipe or a device, which would block.
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
    """Read the diagnosis of each patient from lines `101,URTI`.

    The columns are separated by commas, tabs, semicolons or spaces; a header names them in any
    order. The eight known diagnoses are spelled as in ICBHI, whatever their case; others are kept.
    """

    def parse(fields: list[str], first: list[str]) -> tuple[str, str] | None:
        header = _header(first)
        if header and fields is first:
            return None
        patient_column, diagnosis_column = header or (0, 1)
        if len(fields) <= max(patient_column, diagnosis_column):
            raise _error(fields, "is not a patient and a diagnosis")
        patient, diagnosis = _patient(fields[patient_column]), fields[diagnosis_column]
        if not _PATIENT.fullmatch(patient):
            raise _error(fields, "does not start with a patient")
        if diagnosis.lower() in _MISSING:
            raise ValueError(f"patient {patient} has no diagnosis")
        return patient, canonical_diagnosis(diagnosis)

    return _merge(paths, parse, "patient")


def read_people(paths: Sequence[Path]) -> Table[Person]:
    """Read age and sex of each patient from lines `101 3 F NA 19 99`; NA is missing."""

    def parse(fields: list[str], _first: list[str]) -> tuple[str, Person] | None:
        patient = _patient(fields[0])
        if _squeeze(patient) in _PATIENT_HEADERS:
            return None
        if len(fields) < 3 or not _PATIENT.fullmatch(patient):
            raise _error(fields, "is not a patient, age and sex")
        return patient, Person(_age(patient, fields[1]), _sex(patient, fields[2]))

    return _merge(paths, parse, "patient")


def read_official(paths: Sequence[Path]) -> Table[OfficialSplit]:
    """Read the challenge's split from lines `<stem>` and `train` or `test`."""

    def parse(fields: list[str], _first: list[str]) -> tuple[str, OfficialSplit]:
        split = fields[1].lower() if len(fields) == 2 else ""
        if split == "train" or split == "test":
            return fields[0].removesuffix(".wav"), "train" if split == "train" else "test"
        raise _error(fields, "is not a recording and train/test")

    return _merge(paths, parse, "recording")


def match_official(
    names: Mapping[Path, Name], official: Mapping[str, OfficialSplit]
) -> tuple[dict[Path, OfficialSplit], list[str]]:
    """Return the official split of each recording, and a line for each that has none.

    The published table names one device wrongly: a recording that is not in it is matched by its
    name without the device, if that is unique.
    """
    splits = {path: official[path.stem] for path in names if path.stem in official}
    problems: list[str] = []
    unmatched = [path for path in names if path not in splits]
    here = {path.stem for path in names}
    unused = {stem: split for stem, split in official.items() if stem not in here}
    aliases: dict[tuple[str, ...], list[str]] = {}
    for stem in unused:
        if alias := parse_stem(stem):
            aliases.setdefault(alias[:-1], []).append(stem)
    wanted = Counter(names[path][:-1] for path in unmatched)
    for path in list(unmatched):
        key = names[path][:-1]
        if len(stems := aliases.get(key, [])) == wanted[key] == 1:
            splits[path] = unused.pop(stems[0])
            unmatched.remove(path)
            problems.append(
                f"the official split calls {path.stem} {stems[0]}: matched without the device"
            )
    if unused:
        problems.append(
            f"the official split names {plural(len(unused), 'recording')} not here: "
            f"{join_names(sorted(unused))}"
        )
    if unmatched:
        stems = sorted(path.stem for path in unmatched)
        problems.append(
            f"{plural(len(stems), 'recording')} not in the official split: {join_names(stems)}"
        )
    return splits, problems


def _merge(
    paths: Sequence[Path],
    parse: Callable[[list[str], list[str]], tuple[str, T] | None],
    key_name: str,
) -> Table[T]:
    """Read tables as one; `parse` takes the fields of a row and of the first, None is a header."""
    values: dict[str, T] = {}
    conflicts: set[str] = set()
    problems: list[str] = []
    for path in paths:
        try:
            rows = _rows(read_text(path))
        except OSError as error:
            problems.append(f"'{path}' cannot be read: {error.strerror}")
            continue
        skipped: list[str] = []
        for number, fields in rows:
            try:
                row = parse(fields, rows[0][1])
            except ValueError as error:
                skipped.append(f"{path.name} line {number}: {error}; the line is left out")
                continue
            if row is None:
                continue
            key, value = row
            if values.setdefault(key, value) != value and key not in conflicts:
                conflicts.add(key)
                skipped.append(
                    f"{path.name} line {number}: {key_name} {key} is '{value}' here and "
                    f"'{values[key]}' above; neither is used"
                )
        problems += skipped[:_MAX_PROBLEMS]
        if len(skipped) > _MAX_PROBLEMS:
            problems.append(f"{path.name}: {len(skipped) - _MAX_PROBLEMS} more lines like these")
    kept = {key: value for key, value in values.items() if key not in conflicts}
    return Table(kept, frozenset(conflicts), tuple(problems))


def _rows(text: str) -> list[tuple[int, list[str]]]:
    """Return the line number, from 1, and the stripped fields of each line that is not blank."""
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    # A decimal comma in one line does not make a table comma-separated: half the lines must agree.
    separator = next((s for s in "\t,;" if sum(s in x for _, x in lines) * 2 >= len(lines)), None)
    return [
        (number, [field.strip().strip("\"'").strip() for field in line.split(separator)])
        for number, line in lines
    ]


def _header(fields: Sequence[str]) -> tuple[int, int] | None:
    """Return the columns of patient and diagnosis if a first line holds names, not values."""
    names = [_squeeze(field) for field in fields]
    patient = next((i for i, name in enumerate(names) if name in _PATIENT_HEADERS), None)
    diagnosis = next((i for i, name in enumerate(names) if name in _DIAGNOSIS_HEADERS), None)
    if patient is None and diagnosis is None:
        return None
    if patient is None:
        patient = 0 if diagnosis != 0 else 1
    return patient, patient + 1 if diagnosis is None else diagnosis


def _squeeze(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _patient(text: str) -> str:
    """Return `101` for a spreadsheet's `101.0`, any other text unchanged."""
    return re.sub(r"\.0+$", "", text)


def _age(patient: str, text: str) -> float | None:
    if text.lower() in _MISSING:
        return None
    try:
        age = float(text)
    except ValueError:
        age = math.nan
    if not 0 <= age <= 130:
        raise ValueError(f"patient {patient}: age '{shorten(text)}' is not a number of years")
    return age


def _sex(patient: str, text: str) -> str | None:
    if text.lower() in _MISSING:
        return None
    sex = {"f": "F", "female": "F", "m": "M", "male": "M"}.get(text.lower())
    if sex is None:
        raise ValueError(f"patient {patient}: sex '{shorten(text)}' is not F, M or NA")
    return sex


def _error(fields: Sequence[str], reason: str) -> ValueError:
    return ValueError(f"'{shorten(' '.join(fields))}' {reason}")


@dataclass(frozen=True)
class Cycle:
    """One breathing cycle: `start` and `end` in seconds from the recording's first sample."""

    start: float
    end: float
    crackle: bool
    wheeze: bool


def parse_cycles(text: str, seconds: float) -> tuple[tuple[Cycle, ...], tuple[str, ...]]:
    """Parse an annotation file into cycles, sorted by start, and one line per problem.

    Each line of the file is `start end crackle wheeze` (seconds, seconds, 0/1, 0/1), separated by
    tabs or spaces; any other line is reported and left out. `seconds` is the length of the
    recording: a cycle that starts after it is left out, one that ends after it is cut (and reported
    if by more than `END_TOLERANCE`).
    """
    cycles: list[Cycle] = []
    problems: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        cycle, length = _cycle(line), f"but the recording is {seconds:g} s long"
        if isinstance(cycle, str):
            shown = shorten(line.strip())
            problems.append(f"line {number}, '{shown}': {cycle}; the line is left out")
            continue
        where = f"line {number}: the cycle"
        if cycle.start >= seconds:
            problems.append(f"{where} starts at {cycle.start:g} s, {length}; the line is left out")
            continue
        if cycle.end > seconds + END_TOLERANCE:
            problems.append(f"{where} ends at {cycle.end:g} s, {length}; the cycle is cut there")
        cycles.append(replace(cycle, end=min(cycle.end, seconds)))
    cycles.sort(key=lambda cycle: (cycle.start, cycle.end))
    overlaps = sum(later.start < earlier.end - END_TOLERANCE for earlier, later in pairwise(cycles))
    if overlaps:
        problems.append(f"{overlaps} of {len(cycles)} cycles start before the one before them ends")
    return tuple(cycles), tuple(problems)


def _cycle(line: str) -> Cycle | str:
    """Parse a line into a cycle; return what is wrong with it if that fails."""
    fields = line.split()
    if len(fields) != 4:
        return f"{len(fields)} fields instead of start, end, crackle, wheeze"
    try:
        start, end, crackle, wheeze = (float(field) for field in fields)
    except ValueError:
        return "start, end, crackle and wheeze must be numbers"
    if not (math.isfinite(start) and math.isfinite(end)):
        return "start and end must be finite"
    if not 0 <= start < end:
        return "start must be at least 0 and below end"
    if crackle not in (0, 1) or wheeze not in (0, 1):
        return "crackle and wheeze must be 0 or 1"
    return Cycle(start, end, crackle == 1, wheeze == 1)
