"""Annotation files: the breathing cycles of a recording."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

from resp_tune.common.text import plural
from resp_tune.data.columns import Column, any_word, squeeze
from resp_tune.data.tables import Row, TableError, drop_ragged, split_rows

# Seconds. The annotators' clock and the audio's length are rounded differently.
END_TOLERANCE = 0.05

_FAR = 10  # recording lengths: times beyond are not seconds

_NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_COLUMNS = (
    Column("start", "start", any_word("start starts starttime startsec begin onset tstart from")),
    Column("end", "end", any_word("end ends endtime endsec stop offset tend to")),
    Column("crackle", "crackle", any_word("crackle crackles")),
    Column("wheeze", "wheeze", any_word("wheeze wheezes")),
)


@dataclass(frozen=True)
class Cycle:
    """One breathing cycle: `start` and `end` in seconds from the recording's first sample."""

    start: float
    end: float
    crackle: bool
    wheeze: bool


class Note(NamedTuple):
    """A problem of an annotation file: `kind` is the same for all files that have it.

    `where` is a line of the file; it is empty for a problem of the whole file.
    """

    kind: str
    where: str
    text: str


def parse_cycles(text: str, seconds: float) -> tuple[tuple[Cycle, ...], tuple[Note, ...]]:
    """Parse an annotation file into cycles, sorted by start, and a note per problem.

    Each line of the file is `start end crackle wheeze` (seconds, seconds, 0/1, 0/1), separated by
    tabs, semicolons, commas or spaces, with decimal points or commas; further columns are ignored.
    A header names the columns in any order. Any other line is noted and left out. `seconds` is the
    length of the recording: a cycle that starts after it is left out, one that ends after it is cut
    (and noted if by more than `END_TOLERANCE`). A cycle with different labels is left out. A file
    of which at least half of the cycles end after `_FAR` times the length is not in seconds.
    """
    empty = Note("annotations without cycles", "", "holds no cycles")
    if not text.strip("\ufeff \t\r\n"):
        return (), (empty,)
    cycles: list[Cycle] = []
    try:
        rows, columns, notes = _columns(split_rows(text, _is_line))
    except TableError as error:
        return (), (Note("annotations that are not used", "", f"is not used: {error}"),)
    labelled = {row.line: _cycle(row, columns) for row in rows}
    read = [cycle for cycle in labelled.values() if isinstance(cycle, Cycle)]
    if read and 2 * sum(cycle.end > _FAR * seconds for cycle in read) >= len(read):
        last = max(cycle.end for cycle in read)
        far = f"is not used: its times reach {last:g}, but the recording is {seconds:g} s long: "
        return (), (Note("annotations not in seconds", "", f"{far}write seconds of it"),)
    different = Counter((cycle.start, cycle.end) for cycle in set(read))
    for row in rows:
        cycle = labelled[row.line]
        where, length = f"line {row.line}, {row}", f"but the recording is {seconds:g} s long"
        if isinstance(cycle, Cycle) and different[cycle.start, cycle.end] > 1:
            cycle = "another line has the same cycle with other labels"
        if isinstance(cycle, str):
            notes.append(Note(cycle, where, f"{cycle}; the line is left out"))
        elif cycle.start >= seconds:
            late = f"the cycle starts at {cycle.start:g} s, {length}; the line is left out"
            notes.append(Note("cycles that start after the recording", where, late))
        else:
            if cycle.end > seconds + END_TOLERANCE:
                cut = f"the cycle ends at {cycle.end:g} s, {length}; the cycle is cut there"
                notes.append(Note("cycles that end after the recording, cut there", where, cut))
            cycles.append(replace(cycle, end=min(cycle.end, seconds)))
    if not cycles and not notes:
        notes.append(empty)
    cycles.sort(key=lambda cycle: (cycle.start, cycle.end))
    overlaps = sum(later.start < earlier.end - END_TOLERANCE for earlier, later in pairwise(cycles))
    if overlaps:
        many = f"{overlaps} of {len(cycles)} cycles start before the one before them ends"
        notes.append(Note("cycles that start before the one before them ends", "", many))
    return tuple(cycles), tuple(notes)


def join_notes(notes: Mapping[str, Sequence[Note]]) -> list[str]:
    """Return a line for each kind of problem; `notes` are those of each file, by its name."""
    groups: dict[str, list[tuple[str, Note]]] = {}
    for name, found in notes.items():
        for note in found:
            groups.setdefault(note.kind, []).append((name, note))
    lines = []
    for kind, each in groups.items():
        name, first = each[0]
        files = plural(len({name for name, _ in each}), "annotation")
        where = f"{name} {first.where}: " if first.where else f"{name} "
        example = f"{name} {first.where or first.text}"
        many = f"{len(each)} times in {files}: {kind}, e.g. {example}"
        lines.append(f"{where}{first.text}" if len(each) == 1 else many)
    return lines


def _is_line(cells: Sequence[str]) -> bool:
    return len(cells) >= 4 and all(_NUMBER.fullmatch(cell) for cell in cells[:4])


def _columns(rows: list[Row]) -> tuple[list[Row], tuple[int, ...], list[Note]]:
    """Return the rows below a header, the columns of start, end, crackle, wheeze, and notes."""
    rows = [row for row in map(_uncomment, rows) if row]
    if not rows:
        return [], (0, 1, 2, 3), []
    for row in rows[1:]:
        if _count_words(row.cells) > 2 and row.cells != rows[0].cells:
            raise TableError(f"line {row.line} is a header below other lines: {row}")
    if any(_NUMBER.fullmatch(cell) for cell in rows[0].cells):
        kept, ragged = drop_ragged(None, rows)
        notes = [Note("lines with more or fewer cells than the others", "", x) for x in ragged]
        if not kept:
            return [], (0, 1, 2, 3), notes
        width = len(kept[0].cells)
        if width < 4:
            raise TableError(f"it has {width} columns instead of start, end, crackle, wheeze")
        if width > 4:
            _check_place(kept)
            more = f"has {width} columns: those after the fourth are ignored"
            notes.append(Note("columns after start, end, crackle, wheeze are ignored", "", more))
        return kept, (0, 1, 2, 3), notes
    names = [squeeze(cell) for cell in rows[0].cells]
    found = [[i for i, name in enumerate(names) if c.knows(name)] for c in _COLUMNS]
    if any(len(indices) != 1 for indices in found):
        raise TableError(f"its header {rows[0]} does not name start, end, crackle, wheeze once")
    kept, ragged = drop_ragged(rows[0], [row for row in rows if row.cells != rows[0].cells])
    notes = [Note("lines with more or fewer cells than the header", "", x) for x in ragged]
    return kept, tuple(indices[0] for indices in found), notes


def _count_words(cells: Sequence[str]) -> int:
    """Return how many of start, end, crackle and wheeze are named."""
    words = [squeeze(cell) for cell in cells]
    return sum(any(column.knows(word) for word in words) for column in _COLUMNS)


def _uncomment(row: Row) -> Row | None:
    """Return None for a comment, unless it is a header: then the words after the `#`."""
    if not row.cells[0].startswith("#"):
        return row
    words = re.findall(r"\w+", " ".join(row.cells))
    return row._replace(cells=tuple(words)) if _count_words(words) > 2 else None


def _check_place(rows: Sequence[Row]) -> None:
    """Raise `TableError` unless the first four of more columns are start, end, crackle, wheeze.

    The first may count the rows, and decimal commas may have been taken for separators.
    """
    whole = all(row.cells[0].isdigit() for row in rows)
    further = any(_NUMBER.fullmatch(cell) for row in rows for cell in row.cells[4:])
    if (whole and further) or any(isinstance(_cycle(row, range(4)), str) for row in rows):
        raise TableError(
            f"it has {len(rows[0].cells)} columns, such as {rows[0]}: name them in a header "
            "(start, end, crackle, wheeze)"
        )


def _cycle(row: Row, columns: Sequence[int]) -> Cycle | str:
    """Return the cycle of a row, or what is wrong with it."""
    cells = [row.cells[i] for i in columns]
    if not all(map(_NUMBER.fullmatch, cells)):
        return "start, end, crackle and wheeze must be numbers"
    start, end, crackle, wheeze = (float(cell.replace(",", ".")) for cell in cells)
    if not (math.isfinite(start) and math.isfinite(end)):
        return "start and end must be finite"
    if not 0 <= start < end:
        return "start must be at least 0 and below end"
    if crackle not in (0, 1) or wheeze not in (0, 1):
        return "crackle and wheeze must be 0 or 1"
    return Cycle(start, end, crackle == 1, wheeze == 1)
