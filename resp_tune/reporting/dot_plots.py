"""Draw tables with a dot plot in each row, on one scale, without a script.

A mark's `kind` and a line's `tone` are classes of the page's style. Each kind has a shape of its
own and each tone its words, so that nothing depends on colour.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from resp_tune.reporting.format import MINUS

Span = tuple[float, float]


@dataclass(frozen=True)
class Mark:
    """A value on a row: `dot`, `ring`, `diamond`, `bound` or `chance`."""

    value: float
    kind: str
    title: str = ""


@dataclass(frozen=True)
class Line:
    """A row: its label, marks, whisker (`span`) and the cells after the drawing."""

    label: str
    marks: tuple[Mark, ...]
    cells: tuple[str, ...]
    note: str = ""
    span: Span | None = None
    tone: str = ""


@dataclass(frozen=True)
class DotTable:
    """Lines on a scale from `low` to `high`. `headers` name the label, the scale and the cells.

    `legend` explains the kinds of marks that need it.
    """

    headers: tuple[str, ...]
    lines: tuple[Line, ...]
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    zero: bool
    legend: tuple[tuple[str, str], ...]

    def position(self, value: float) -> float:
        """Return a value's position, from 0 at the left end of the scale to 1 at the right."""
        return min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)


def dot_table(
    headers: Sequence[str],
    lines: Sequence[Line],
    *,
    limits: Span | None = None,
    zero: bool = False,
    legend: Iterable[tuple[str, str]] = (),
) -> DotTable | None:
    """Return a table of `lines`, or None if there are none.

    `limits` of the scale default to those of what is drawn. With `zero`, 0 is on the scale and
    marked. Of `legend` (kind, meaning), the kinds that are drawn are kept.
    """
    if not lines:
        return None
    low, high = limits or _extent(lines, zero)
    drawn = {mark.kind for line in lines for mark in line.marks}
    shown = tuple((kind, text) for kind, text in legend if kind in drawn)
    return DotTable(tuple(headers), tuple(lines), low, high, _ticks(low, high), zero, shown)


def _extent(lines: Sequence[Line], zero: bool) -> Span:
    """Return the lowest and highest value that is drawn, with a margin."""
    values = [mark.value for line in lines for mark in line.marks]
    values += [end for line in lines for end in line.span or ()]
    values += [0.0] * (zero or not values)
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or 0.01
    return low - margin, high + margin


def _ticks(low: float, high: float) -> tuple[tuple[float, str], ...]:
    """Return round numbers on the scale, three to six of them, with their text."""
    power = 10.0 ** math.floor(math.log10(high - low))
    step = next(power * f for f in (0.1, 0.2, 0.25, 0.5, 1, 2) if (high - low) / (power * f) < 6)
    digits = next(d for d in range(9) if math.isclose(round(step, d), step))
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first + 1
    return tuple(
        (i * step, f"{i * step:.{digits}f}".replace("-", MINUS))
        for i in range(first, first + count)
    )
