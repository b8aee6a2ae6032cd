"""Read tables of text as CSV: encoding, separator, quotes, and the rows that cannot be used."""

from __future__ import annotations

import csv
import errno
import io
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from resp_tune.common.text import join_names, shorten

_SPACES = " "  # any run of spaces and tabs, as in ICBHI's own tables
_SEPARATORS = ("\t", ";", ",", "|", _SPACES)
_EMPTY_CELL = re.compile(r"(^|\t) *\t", re.MULTILINE)
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff]")  # marks that copied text brings
_HINT = re.compile(r"\ufeff?sep=([\t;,| ])\s*(?=\n|$)")  # the first line of some spreadsheets


class TableError(ValueError):
    """A table of which nothing can be used; the message says why, without the file's name."""


class Row(NamedTuple):
    """The cells of a row, without spaces around them, and its first and last line, from 1."""

    line: int
    end: int
    cells: tuple[str, ...]

    def __str__(self) -> str:
        return f"'{shorten(', '.join(self.cells), 60)}'"


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


def split_rows(text: str, is_good: Callable[[Sequence[str]], bool]) -> list[Row]:
    """Split `text` into rows at the separator that makes most rows good.

    `is_good` recognises the cells of a row, for example by a known patient. Of separators that are
    equal in this, the one that gives most rows the same number of cells is used, and of these the
    first of tab, semicolon, comma, bar and spaces. Empty rows are left out. Raises `TableError` for
    a table of one column, a git-lfs pointer, and where quotation marks do not match.
    """
    if text.startswith("version https://git-lfs"):
        raise TableError("it is a git-lfs pointer: run git lfs pull")
    text = re.sub(r"\r\n?", "\n", text)
    # A run of tabs is not one separator: an empty cell may be between them.
    separators: Sequence[str] = _SEPARATORS[:-1] if _EMPTY_CELL.search(text) else _SEPARATORS
    if hint := _HINT.match(text):
        separators, text = (hint[1],), text[hint.end() :]
    best: tuple[tuple[int, float], list[Row]] | None = None
    first_error: tuple[int, TableError] | None = None
    for separator in separators:
        rows: list[Row] = []
        try:
            rows.extend(_parse(text, separator))
        except TableError as error:
            if first_error is None or len(rows) > first_error[0]:
                first_error = len(rows), error
            continue
        widths = Counter(len(row.cells) for row in rows if len(row.cells) > 1)
        if widths:
            agreement = widths.most_common(1)[0][1] / len(rows)
            quality = (sum(is_good(row.cells) for row in rows), agreement)
            if best is None or quality > best[0]:
                best = quality, rows
            if quality == (len(rows), 1.0):
                break
    if first_error and (best is None or (best[0][0] == 0 and best[0][1] < 1)):
        raise first_error[1]
    if best:
        return best[1]
    raise TableError("it has one column only" if text.strip() else "it is empty")


def _parse(text: str, separator: str) -> Iterator[Row]:
    if separator == _SPACES:
        text = re.sub(r"[^\S\n]+", " ", text)
        text = re.sub(r"(?m)^ | $", "", text)
    reader = csv.reader(io.StringIO(text), delimiter=separator, skipinitialspace=True, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise TableError(
                f"in line {line} a quotation mark is not closed or has text after it"
            ) from error
        row = Row(line, reader.line_num, tuple(map(_clean, cells)))
        if any(row.cells):
            yield row


def _clean(cell: str) -> str:
    """Return a cell without invisible marks, spaces and single quotes around it, on one line."""
    cell = " ".join(_INVISIBLE.sub("", cell).split())
    if len(cell) > 1 and cell[0] == cell[-1] == "'":
        cell = cell[1:-1].strip()
    return cell


def drop_ragged(
    header: Row | None, rows: Sequence[Row], begins: Callable[[str], bool] = bool
) -> tuple[list[Row], list[str]]:
    """Return the rows that have as many cells as the header, else as most rows; name the others.

    Empty cells at the end of all rows, beyond the header's last name, are not counted. A row with
    too few cells whose first cell does not begin a row, as `begins` tells, may be the rest of the
    row above it, which is then left out too.
    """
    last = max((_used(row) for row in rows), default=0)
    if header:
        last = max(last, _used(header))
        width = min(len(header.cells), last)
    else:
        last = max(last, 2)
        widths = Counter(min(len(row.cells), last) for row in rows if len(row.cells) > 1)
        width = max(widths, key=lambda each: (widths[each], each), default=2)
    cut = [row._replace(cells=row.cells[:last]) for row in rows]
    odd = [row for row in cut if len(row.cells) != width]
    if not odd:
        return cut, []
    rests = {row.line for row in odd if len(row.cells) < width and not begins(row.cells[0])}
    kept = [row for row in cut if len(row.cells) == width and row.end + 1 not in rests]
    torn = [str(row.line) for row in cut if len(row.cells) == width and row.end + 1 in rests]
    other = "the header" if header else "the others"
    if len(odd) == 1:
        count = "1 cell" if len(odd[0].cells) == 1 else f"{len(odd[0].cells)} cells"
        line = f"line {odd[0].line} has {count}, not {width} as {other}: {odd[0]}"
        rest = f"; it may be the rest of line {torn[0]}, which is left out too" if torn else ""
        return kept, [f"{line}; the line is left out{rest}"]
    lines = join_names([str(row.line) for row in odd], 10)
    line = f"lines {lines} have not {width} cells as {other}, e.g. {odd[0]}"
    rest = f"; they may be the rest of lines {join_names(torn, 10)}, left out too" if torn else ""
    return kept, [f"{line}; these lines are left out{rest}"]


def _used(row: Row) -> int:
    """Return the number of cells up to the last that is not empty."""
    return max((i for i, cell in enumerate(row.cells, 1) if cell), default=0)
