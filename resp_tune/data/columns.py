"""Find the columns of a table: by the words of its header, and by the keys that are known."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from resp_tune.common.text import shorten
from resp_tune.data.tables import Row, TableError

_HEADER_WITHIN = 10  # rows: titles and remarks may be above it
DECIMALS = re.compile(r"(?<=\d)[.,]00?$")  # of spreadsheets; `1.000` may be a thousand
_INDEX = re.compile(r"(unnamed|index|row|rownumber|column)?\d*")


@dataclass(frozen=True)
class Column:
    """What a column holds, and the squeezed words for it.

    `name` and `examples` are for messages. `words` are clear; `vague` ones count only if no column
    has a clear one.
    """

    name: str
    examples: str
    words: re.Pattern[str]
    vague: frozenset[str] = frozenset()

    def knows(self, word: str) -> bool:
        """Tell whether a squeezed word of a header may name this column."""
        return bool(self.words.fullmatch(word)) or word in self.vague


class Keys:
    """The keys that a table should have, such as the patients of the file names."""

    def __init__(self, names: Iterable[str], plain: Callable[[str], str]) -> None:
        """Compare `names` and cells as `plain` gives them."""
        self._plain = plain
        self._names = {plain(name) for name in names}

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, cell: str) -> bool:
        return self._plain(cell) in self._names

    def fill(self, values: Sequence[str]) -> bool:
        """Tell whether most values are keys, or most keys are among the values."""
        found = {self._plain(value) for value in values} & self._names
        rows = sum(value in self for value in values)
        return 2 * rows > len(values) or 2 * len(found) > len(self._names) > 0


@dataclass(frozen=True)
class Grid:
    """A table whose rows have the same number of cells; `names` are its header's, squeezed."""

    header: Row | None
    names: tuple[str, ...]
    rows: tuple[Row, ...]

    def values(self, index: int) -> list[str]:
        """Return the cells of a column."""
        return [row.cells[index] for row in self.rows]

    @property
    def width(self) -> int:
        """Return the number of columns."""
        return len(self.rows[0].cells)


def squeeze(word: str) -> str:
    """Return `patientid` for `Patient ID`, `diagnostico` for `Diagnóstico`."""
    plain = unicodedata.normalize("NFKD", word.casefold())
    return "".join(c for c in plain if c.isalnum())


def plain_patient(name: str) -> str:
    """Return a patient without what spreadsheets and people change: case, leading zeros, `.0`."""
    name = DECIMALS.sub("", name.casefold())
    return re.sub(r"(?<!\d)0+(?=\d)", "", name)


def any_word(words: str) -> re.Pattern[str]:
    """Return a pattern of words that are separated by spaces."""
    return re.compile("|".join(squeeze(word) for word in words.split()))


def find_header(rows: Sequence[Row], columns: Sequence[Column], keys: Keys) -> int | None:
    """Return the index of the first row with a word for a column, if no known key is before it."""
    for index, row in enumerate(rows[:_HEADER_WITHIN]):
        if any(cell in keys for cell in row.cells):
            return None
        words = [squeeze(cell) for cell in row.cells]
        if any(column.knows(word) for column in columns for word in words):
            return index
    return None


def find_key(grid: Grid, key: Column, others: Sequence[Column], keys: Keys) -> int:
    """Return the column of the keys, such as patients.

    It is the one that the header names clearly; else the other of two columns if the header names
    one of `others`; else the only one that holds the known keys. Raises `TableError` if there is
    none, or several.
    """
    clear = [i for i, name in enumerate(grid.names) if key.words.fullmatch(name)]
    unnamed = [i for i, name in enumerate(grid.names) if not name and not _is_index(grid, i)]
    if len(clear) == 1 and not any(keys.fill(grid.values(i)) for i in unnamed):
        return clear[0]
    clear += unnamed if clear else []  # a header may be merged over several columns
    named = [
        i
        for i, name in enumerate(grid.names)
        if name not in key.vague and any(c.knows(name) for c in others)
    ]
    if not clear and grid.width == 2 and len(named) == 1:
        other = 1 - named[0]
        if _is_index(grid, other) or counts_from_0(grid.values(other), keys):
            raise unclear(grid, "no column is", key)
        return other
    free = clear or [i for i in range(grid.width) if i not in named]
    known = [i for i in free if keys.fill(grid.values(i))]
    if len(known) > 1:
        known = [i for i in known if not _is_index(grid, i)] or known
    vague = [i for i in free if grid.names and grid.names[i] in key.vague]
    if len(known) == 1:
        return known[0]
    if not known and len(vague) == 1:
        return vague[0]
    several = len(known or clear) > 1
    raise unclear(grid, "several columns may be" if several else "no column is", key)


def counts_rows(values: Sequence[str]) -> bool:
    """Tell whether values count three rows or more from 0 or 1.

    One row may have been left out, and one may be a total.
    """
    numbers = [int(value) for value in values if re.fullmatch("[0-9]{1,9}", value)]
    rising = numbers == sorted(set(numbers))
    return rising and len(numbers) > max(2, len(values) - 2) and numbers[-1] <= len(values) + 1


def counts_from_0(values: Sequence[str], keys: Keys) -> bool:
    """Tell whether values count the rows from 0, which is no key."""
    return counts_rows(values) and values[0] == "0" and "0" not in keys


def _is_index(grid: Grid, index: int) -> bool:
    """Tell whether a column has no name of its own and counts the rows."""
    unnamed = grid.names and _INDEX.fullmatch(grid.names[index])
    return bool(unnamed) and counts_rows(grid.values(index))


def find_value(grid: Grid, column: Column) -> int | None:
    """Return the column that the header names, None if there is none.

    Columns of the same name must not differ: else `TableError`.
    """
    for knows in (column.words.fullmatch, column.vague.__contains__):
        found = [i for i, name in enumerate(grid.names) if knows(name)]
        if len(found) > 1:
            check_same(grid, column, found)
        if found:
            return found[0]
    return None


def check_same(grid: Grid, column: Column, indices: Sequence[int]) -> None:
    """Raise `TableError` if columns that mean the same differ in a row."""
    for row in grid.rows:
        if len({row.cells[i].casefold() for i in indices}) > 1:
            names = " and ".join(
                f"'{shorten(grid.header.cells[i])}'" for i in indices if grid.header
            )
            raise TableError(
                f"its columns {names} differ, e.g. in line {row.line}: rename all but that of the "
                f"{column.name}"
            )


def unclear(grid: Grid, what: str, *columns: Column) -> TableError:
    """Return the error for a table in which `what` ("no column is") that of `columns`."""
    names = " or ".join(column.name for column in columns)
    words = "; ".join(f"{column.name}: {column.examples}" for column in columns)
    if grid.header:
        return TableError(f"in its header {grid.header} {what} that of the {names} ({words})")
    return TableError(
        f"it has {grid.width} columns and no known header, but {grid.rows[0]}: name the columns "
        f"({words})"
    )


# The words by which headers name their columns, in the languages of spreadsheets.
_IDS = "(id|ids|no|nr|num|number|code|key|identifier|nummer|numero)?"
_PERSONS = (
    "patients?|subjects?|participants?|pacientes?|patienten|patientin|pazient[ei]|doentes?|"
    "utentes?|hasta|患者|病人|환자|пациент"
)
PATIENT = Column(
    "patient",
    "patient, patient ID, subject, participant",
    re.compile(
        unicodedata.normalize("NFKD", f"(id|no|nr|num|numero|cod|code)?({_PERSONS}){_IDS}|pid")
    ),
    frozenset(
        (
            "id",
            "ids",
            "case",
            "cases",
            "caseid",
            "caseno",
            "casenumber",
            "person",
            "personid",
            "name",
        )
    ),
)
DIAGNOSIS = Column(
    "diagnosis",
    "diagnosis, disease, label, class, condition",
    any_word(
        "diagnosis diagnoses diagnose diagnosen diagnostic diagnóstico diagnosi diagnoza disease "
        "diseases dx enfermedad maladie krankheit malattia doença tanı tani 诊断 診断 진단 диагноз"
    ),
    frozenset(("label", "labels", "class", "condition", "pathology")),
)
AGE = Column(
    "age",
    "age, age (years)",
    re.compile(
        "(age|edad|alter|eta|idade|yas|年齢|年龄|возраст)"
        "((in)?(y|yo|yrs?|years?|jahren?|anos|anni|ans|yıl|岁))?"
    ),
)
SEX = Column(
    "sex",
    "sex, gender",
    any_word("sex gender sexo sexe sesso género geschlecht cinsiyet 性别 性別 пол"),
)
RECORDING = Column(
    "recording",
    "recording, file, filename",
    any_word(
        "recording recordings recordingid recordingname file files "
        "filename stem wav wavfile audio audiofile"
    ),
    frozenset(("name", "id", "record")),
)
SPLIT = Column(
    "split",
    "split, set, subset",
    any_word("split splits set subset partition officialsplit traintest"),
)
COLUMNS = (PATIENT, DIAGNOSIS, AGE, SEX, RECORDING, SPLIT)
