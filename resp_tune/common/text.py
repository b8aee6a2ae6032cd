"""Write counts, lists and values as text of one line."""

from __future__ import annotations

from collections.abc import Sequence


def plural(number: int, noun: str) -> str:
    """Return `1 recording`, `2 recordings`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def join_names(names: Sequence[str], most: int = 3) -> str:
    """Return the first names, such as `a, b, c and 5 more`."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def amount(number: int, noun: str, patients: int) -> str:
    """Return `2 recordings of 1 patient`."""
    return f"{plural(number, noun)} of {plural(patients, 'patient')}"


def one_line(message: object) -> str:
    """Return `message` on one line, with `?` for characters that cannot be printed.

    File names and cells of tables may hold line ends, escape sequences and broken UTF-8.
    """
    line = " ".join(str(message).splitlines())
    return "".join(c if c.isprintable() else "?" for c in line)


def shorten(text: str, most: int = 40) -> str:
    """Return `text` on one line of at most `most` characters."""
    line = one_line(text)
    return line if len(line) <= most else line[: most - 1] + "…"


def short(value: object) -> str:
    """Return a value with at most three significant digits."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)
