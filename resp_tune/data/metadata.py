"""The tables of a data set: diagnoses, people and the official split."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath
from typing import Generic, Literal, NamedTuple, TypeVar

from resp_tune.common.text import join_names, shorten
from resp_tune.data.columns import (
    AGE,
    COLUMNS,
    DECIMALS,
    DIAGNOSIS,
    PATIENT,
    RECORDING,
    SEX,
    SPLIT,
    Column,
    Grid,
    Keys,
    check_same,
    counts_from_0,
    counts_rows,
    find_header,
    find_key,
    find_value,
    plain_patient,
    squeeze,
    unclear,
)
from resp_tune.data.tables import Row, TableError, drop_ragged, read_text, split_rows

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
OfficialSplit = Literal["train", "test"]
T = TypeVar("T")

_MAX_PROBLEMS = 5  # of one table
_MISSING = ("", "na", "n/a", "#n/a", "<na>", "nan", "none", "null", "?", "-", "--", "n.a.", ".")
_PATIENT = re.compile(r"[A-Za-z0-9]+", re.ASCII)
_NUMBER = re.compile(r"\d+([.,]\d*)?|[.,]\d+", re.ASCII)
_SEXES = {"f": "F", "female": "F", "woman": "F", "girl": "F", "w": "F", "weiblich": "F"} | {
    "m": "M", "male": "M", "man": "M", "boy": "M", "männlich": "M"
}  # fmt: skip
_UNIT = re.compile(  # of an age
    r"(y|yrs?|years?|a|años?|ans?|j|jahre?|m|mos?|months?|monate?|mes|meses|mois|"
    r"w|wks?|weeks?|wochen?|d|days?|tage?)\.?"
)
_begins = re.compile(r"[A-Za-z]*[0-9]+([.,]00?)?", re.ASCII).fullmatch  # as a patient's row does
_AUDIO_SUFFIX = re.compile(r"\.(wav|flac|txt)$", re.IGNORECASE)


class Cell(NamedTuple, Generic[T]):
    """The value of a key, and where it is: `patient_diagnosis.csv line 3`."""

    value: T
    where: str


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


Parse = Callable[[Row], tuple[str, T]]  # raises ValueError for a row that cannot be used


def canonical_diagnosis(name: str) -> str:
    """Return one of the eight known diagnoses as ICBHI spells it, and others unchanged."""
    return next((known for known in DIAGNOSES if known.lower() == name.lower()), name)


def read_diagnoses(paths: Sequence[Path], patients: Iterable[str] = ()) -> Table[str]:
    """Read the diagnosis of each patient from lines `101,URTI`.

    A header names the columns in any order; without one there are two columns. `patients` are those
    of the recordings: their column needs no known name. The eight known diagnoses are spelled as in
    ICBHI, whatever their case; others are kept.
    """
    keys = Keys(patients, plain_patient)
    notes: list[str] = []

    def columns(grid: Grid) -> Parse[str]:
        patient, diagnosis = _pair(grid, PATIENT, DIAGNOSIS, keys)
        first = grid.header or grid.rows[0]
        if grid.header and not DIAGNOSIS.knows(grid.names[diagnosis]):
            notes.append(f"'{shorten(first.cells[diagnosis])}' is taken as the diagnosis")
        elif not grid.header and _is_header(first.cells[patient], keys):
            notes.append(f"line {first.line}, {first}, is taken as a header of patient, diagnosis")
        check_same(grid, DIAGNOSIS, [diagnosis, *_rivals(grid, diagnosis)])

        def parse(row: Row) -> tuple[str, str]:
            who, what = _patient(row, patient), row.cells[diagnosis]
            if what.lower() in _MISSING:
                raise ValueError(f"patient {who} has no diagnosis")
            return who, canonical_diagnosis(what)

        return parse

    return _noted(_merge(paths, columns, keys, (PATIENT, DIAGNOSIS)), paths, notes)


def read_people(paths: Sequence[Path], patients: Iterable[str] = ()) -> Table[Person]:
    """Read age and sex of each patient by a header, else from lines `101 3 F NA 19 99`."""
    keys = Keys(patients, plain_patient)
    notes: list[str] = []

    def columns(grid: Grid) -> Parse[Person]:
        patient, age, sex = _people_columns(grid, keys)
        if not grid.header and not _is_icbhi(grid):
            notes.append(f"it has no header: {grid.rows[0]} is taken as patient, age, sex, …")
        if grid.header:
            absent = [c for c, index in ((AGE, age), (SEX, sex)) if index is None]
            notes.extend(str(unclear(grid, "no column is", column)) for column in absent)
        if age is not None and (unit := _other_unit(grid, (age, sex))):
            notes.append(f"its ages are not used: some are in '{unit}', write them in years")
            age = None
        if sex is not None and (values := _other_sexes(grid.values(sex))):
            notes.append(f"its sexes, {values}, are not used: write F, M or NA")
            sex = None

        def parse(row: Row) -> tuple[str, Person]:
            who = _patient(row, patient)
            years = None if age is None else _age(who, row.cells[age])
            return who, Person(years, None if sex is None else _sex(who, row.cells[sex]))

        return parse

    table = _merge(paths, columns, keys, (PATIENT, AGE, SEX))
    return _noted(table, paths, notes)


def read_official(paths: Sequence[Path], stems: Iterable[str] = ()) -> Table[OfficialSplit]:
    """Read the challenge's split from lines `<stem>` and `train` or `test`."""
    keys = Keys(stems, _stem)

    def columns(grid: Grid) -> Parse[OfficialSplit]:
        recording, split = _pair(grid, RECORDING, SPLIT, keys)

        def parse(row: Row) -> tuple[str, OfficialSplit]:
            name = row.cells[split].lower()
            if name not in ("train", "training", "test", "testing"):
                raise ValueError(f"{row} is not a recording and train or test")
            return _stem(row.cells[recording]), "train" if name.startswith("train") else "test"

        return parse

    return _merge(paths, columns, keys, (RECORDING, SPLIT))


def _merge(
    paths: Sequence[Path], columns: Callable[[Grid], Parse[T]], keys: Keys, known: Sequence[Column]
) -> Table[T]:
    """Read tables as one; `columns` returns what reads a row of a table."""
    cells: dict[str, Cell[T]] = {}
    conflicts: set[str] = set()
    problems: list[str] = []
    alike = Counter(path.name for path in paths)
    for path in paths:
        name = path.name if alike[path.name] == 1 else f"{path.parent.name}/{path.name}"
        try:
            grid, skipped = _grid(read_text(path), keys, known)
            parse = columns(grid)
        except OSError as error:
            problems.append(f"'{path}' cannot be read: {error.strerror}")
            continue
        except TableError as error:
            problems.append(f"{name} is not used: {error}")
            continue
        for row in grid.rows:
            where = f"{name} line {row.line}"
            try:
                key, value = parse(row)
            except ValueError as error:
                skipped.append(f"line {row.line}: {error}; the line is left out")
                continue
            first = cells.setdefault(key, Cell(value, where))
            agreed = _agreed(first.value, value)
            if agreed is not None:
                cells[key] = first._replace(value=agreed)
            elif key not in conflicts:
                conflicts.add(key)
                skipped.append(
                    f"line {row.line}: {known[0].name} {key} is '{value}' here and "
                    f"'{first.value}' in {first.where}; neither is used"
                )
        if keys and not any(cell in keys for row in grid.rows for cell in row.cells):
            skipped.insert(0, f"names no {known[0].name} of this data set: {grid.rows[0]}")
        problems += [f"{name} {line}" for line in skipped[:_MAX_PROBLEMS]]
        if len(skipped) > _MAX_PROBLEMS:
            problems.append(f"{name}: {len(skipped) - _MAX_PROBLEMS} more lines like these")
    kept = {key: cell.value for key, cell in cells.items() if key not in conflicts}
    return Table(kept, frozenset(conflicts), tuple(problems))


def _agreed(first: T, second: T) -> T | None:
    """Return what two rows say together, None if they contradict each other."""
    if isinstance(first, Person) and isinstance(second, Person):
        age = second.age if first.age is None else first.age
        sex = first.sex or second.sex
        agree = second.age in (None, age) and second.sex in (None, sex)
        return replace(first, age=age, sex=sex) if agree else None
    return first if first == second else None


def _grid(text: str, keys: Keys, known: Sequence[Column]) -> tuple[Grid, list[str]]:
    """Return a table whose rows have the same number of cells, and a line for rows left out."""
    rows = split_rows(text, lambda cells: any(cell in keys for cell in cells))
    at = find_header(rows, known, keys)
    header = None if at is None else rows[at]
    above = [] if at is None else rows[:at]
    below = rows[len(above) + (at is not None) :]
    body = [row for row in below if row.cells[0][:1] != "#"]
    if below and not body:
        raise TableError(f"all its rows begin with #, as comments do: {below[0]}")
    if not body:
        raise TableError(f"it has no rows below its header {header}" if header else "it is empty")
    kept, problems = drop_ragged(
        header, body, lambda cell: cell.split(" ")[0] in keys or bool(_begins(cell))
    )
    if not kept:
        raise TableError(problems[0])
    problems = [f"line {row.line} {row} is above the header" for row in above] + problems
    if header is None:
        return Grid(None, (), tuple(kept)), problems
    header = header._replace(cells=header.cells[: len(kept[0].cells)])
    names = tuple(map(squeeze, header.cells))
    kept = [row for row in kept if tuple(map(squeeze, row.cells)) != names]
    for row in kept:
        words = [word for word in map(squeeze, row.cells) if any(c.knows(word) for c in known)]
        if len(words) > 1:
            raise TableError(f"line {row.line} is a second header: {row}")
    if not kept:
        raise TableError(f"it has no rows below its header {header}")
    return Grid(header, names, tuple(kept)), problems


def _noted(table: Table[T], paths: Sequence[Path], notes: Sequence[str]) -> Table[T]:
    """Return `table` with `notes` on what was read from `paths`."""
    names = join_names([path.name for path in paths])
    return replace(table, problems=(*table.problems, *(f"{names}: {note}" for note in notes)))


def _is_header(cell: str, keys: Keys) -> bool:
    """Tell whether the first cell of a column of patients is no patient but its unknown name."""
    return bool(keys) and cell not in keys and not any(c.isdigit() for c in cell)


def _pair(grid: Grid, key: Column, value: Column, keys: Keys) -> tuple[int, int]:
    """Return the columns of a table of a key and one value."""
    if not grid.header and (grid.width > 2 or counts_from_0(grid.values(0), keys)):
        raise unclear(grid, "no column is", key, value)
    if not grid.header:
        known = [i for i in (0, 1) if keys.fill(grid.values(i))]
        return (1, 0) if known == [1] else (0, 1)
    others = [column for column in COLUMNS if column is not key]
    found, index = find_value(grid, value), find_key(grid, key, others, keys)
    if found is None and grid.width == 2:
        is_other = any(column.words.fullmatch(grid.names[1 - index]) for column in others)
        found = None if is_other else 1 - index
    if found is None:
        raise unclear(grid, "no column is", value)
    return index, found


def _rivals(grid: Grid, diagnosis: int) -> list[int]:
    """Return other columns that may be that of the diagnosis: by their name and by their values."""
    rivals = []
    for index, name in enumerate(grid.names):
        if index != diagnosis and (DIAGNOSIS.knows(name) or "diagnos" in name or "disease" in name):
            cells = [cell for cell in grid.values(index) if cell.lower() not in _MISSING]
            known = sum(canonical_diagnosis(cell) in DIAGNOSES for cell in cells)
            if cells and 2 * known > len(cells):
                rivals.append(index)
    return rivals


def _people_columns(grid: Grid, keys: Keys) -> tuple[int, int | None, int | None]:
    """Return the columns of patient, age and sex; without a header those of ICBHI's own table."""
    if not grid.header:
        known = [i for i in range(grid.width) if keys.fill(grid.values(i))]
        is_header = _is_header(grid.rows[0].cells[0], keys)
        # Row numbers may be the numbers of patients as well.
        is_index = known and (0 not in known or (known != [0] and counts_rows(grid.values(0))))
        if grid.width < 3 or is_header or is_index or not _in_icbhi_order(grid):
            raise unclear(grid, "no column is", PATIENT, AGE, SEX)
        return 0, 1, 2
    age, sex = find_value(grid, AGE), find_value(grid, SEX)
    if age is None and sex is None:
        raise unclear(grid, "no column is", AGE, SEX)
    return find_key(grid, PATIENT, COLUMNS[1:], keys), age, sex


def _in_icbhi_order(grid: Grid) -> bool:
    """Tell whether at least half of the second cells are ages, and of the third cells sexes."""
    ages, sexes = ([c for c in grid.values(i) if c.lower() not in _MISSING] for i in (1, 2))
    are_ages = 2 * sum(_NUMBER.fullmatch(cell) is not None for cell in ages) >= len(ages)
    are_sexes = 2 * sum(cell.lower() in _SEXES for cell in sexes) >= max(len(sexes), 1)
    return are_ages and are_sexes and not counts_rows(grid.values(1))


def _is_icbhi(grid: Grid) -> bool:
    """Tell whether there is nothing after the sex, or three columns of numbers as in ICBHI's."""
    further = [c for row in grid.rows for c in row.cells[3:] if c.lower() not in _MISSING]
    return grid.width == 3 or (grid.width == 6 and all(map(_NUMBER.fullmatch, further)))


def _other_unit(grid: Grid, others: Sequence[int | None]) -> str | None:
    """Return the first unit that is not years in a column of the units of ages."""
    for index, name in enumerate(grid.names):
        units = [cell.lower() for cell in grid.values(index) if cell.lower() not in _MISSING]
        named = "unit" in name or "einheit" in name or any(len(unit) > 2 for unit in units)
        if index not in others and named and all(map(_UNIT.fullmatch, units)):
            return next((shorten(unit) for unit in units if unit[0] not in "yja"), None)
    return None


def _other_sexes(cells: Sequence[str]) -> str | None:
    """Return the values of a column in which M or F may not mean male and female.

    M is the woman in Spanish (H or V and M), F the man in Hungarian (N and F). D, O, U and X are
    neither in every language.
    """
    values = {cell.lower() for cell in cells} - set(_MISSING)
    sexes = {_SEXES.get(value) for value in values}
    letters = {value for value in values - set("doux") if len(value) == 1 and value not in _SEXES}
    if {"F", "M"} <= sexes or not (letters or sexes == {None}):
        return None
    return join_names(sorted(shorten(value).upper() for value in values))


def _patient(row: Row, column: int) -> str:
    """Return `101` for a spreadsheet's `101.0`; raise `ValueError` for what is no patient."""
    patient = DECIMALS.sub("", row.cells[column])
    if not _PATIENT.fullmatch(patient):
        raise ValueError(f"{row} does not name a patient")
    return patient


def _stem(name: str) -> str:
    """Return the name of a file without its folders, of any system, and suffix."""
    return _AUDIO_SUFFIX.sub("", PureWindowsPath(name).name)


def _age(patient: str, text: str) -> float | None:
    if text.lower() in _MISSING:
        return None
    age = float(text.replace(",", ".")) if _NUMBER.fullmatch(text) else -1.0
    if not 0 <= age <= 130:
        raise ValueError(f"patient {patient}: age '{shorten(text)}' is not a number of years")
    return age


def _sex(patient: str, text: str) -> str | None:
    if text.lower() in _MISSING:
        return None
    sex = _SEXES.get(text.lower())
    if sex is None:
        raise ValueError(f"patient {patient}: sex '{shorten(text)}' is not F, M or NA")
    return sex
