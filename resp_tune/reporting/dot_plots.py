"""Tables with a drawing in each row: marks on one scale, beside their figures, without a script.

A mark's `kind` and a line's `tone` are classes of the page's style. Each kind has a shape of its
own and each tone its words, so that nothing hangs on colour.
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
    """A row: whose it is, what is drawn, and the cells after it. `span` is drawn as a whisker."""

    label: str
    marks: tuple[Mark, ...]
    cells: tuple[str, ...]
    note: str = ""
    span: Span | None = None
    tone: str = ""


@dataclass(frozen=True)
class Strips:
    """`heads` name the first column, the scale and the cells; the scale runs from `low` to `high`.

    `keys` explain the kinds of marks that need it.
    """

    heads: tuple[str, ...]
    lines: tuple[Line, ...]
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    zero: bool
    keys: tuple[tuple[str, str], ...]

    def at(self, value: float) -> float:
        """Where a value stands: 0 at the left end of the scale, 1 at the right, never outside."""
        return min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)


def strips(
    heads: Sequence[str],
    lines: Sequence[Line],
    *,
    ends: Span | None = None,
    zero: bool = False,
    keys: Iterable[tuple[str, str]] = (),
) -> Strips | None:
    """A table of `lines`, None without any. `ends` of the scale: as drawn if not given.

    `zero`: 0 is on the scale and its line is strong. Of `keys` (kind, meaning), those are kept
    whose kind is drawn.
    """
    if not lines:
        return None
    low, high = ends or _extent(lines, zero)
    drawn = {mark.kind for line in lines for mark in line.marks}
    shown = tuple((kind, text) for kind, text in keys if kind in drawn)
    return Strips(tuple(heads), tuple(lines), low, high, _ticks(low, high), zero, shown)


def _extent(lines: Sequence[Line], zero: bool) -> Span:
    """The least and the greatest that is drawn, with some air."""
    values = [mark.value for line in lines for mark in line.marks]
    values += [end for line in lines for end in line.span or ()]
    values += [0.0] * (zero or not values)
    low, high = min(values), max(values)
    air = 0.06 * (high - low) or 0.01
    return low - air, high + air


def _ticks(low: float, high: float) -> tuple[tuple[float, str], ...]:
    """Round numbers on the scale, three to six of them."""
    power = 10.0 ** math.floor(math.log10(high - low))
    step = next(power * f for f in (0.1, 0.2, 0.25, 0.5, 1, 2) if (high - low) / (power * f) < 6)
    digits = next(d for d in range(9) if math.isclose(round(step, d), step))
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first + 1
    return tuple(
        (i * step, f"{i * step:.{digits}f}".replace("-", MINUS))
        for i in range(first, first + count)
    )
