"""Read values of JSON objects and cells of tables, any of which may be missing or damaged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from resp_tune.common.choices import at_level

Row = Mapping[str, str]  # of a table: text by column

_LARGEST = 1e300  # leaves room below the largest float for margins and sums


def value_at(value: object, *path: str) -> Any:
    """Return the value at `path` in nested JSON objects, None if it is not there."""
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def number(value: object, *path: str) -> float | None:
    """Return the number in a cell or at `path` in JSON, if it is one that an axis can show."""
    text = value_at(value, *path)
    if isinstance(text, bool) or not isinstance(text, str | int | float):
        return None
    try:
        found = float(text)
    except (ValueError, OverflowError):
        return None
    return found if abs(found) < _LARGEST else None


def mapping(value: object, *path: str) -> Mapping[str, Any]:
    """Return the JSON object at `path`, or an empty one."""
    found = value_at(value, *path)
    return found if isinstance(found, Mapping) else {}


def objective(summary: Mapping[str, Any]) -> str:
    """Return the key of the metric that was optimised; release 0.1.0 knew no level."""
    return at_level(str(summary.get("metric")), str(summary.get("level", "recording")))


def items(value: object, *path: str) -> Sequence[Any]:
    """Return the JSON array at `path`, or an empty one."""
    found = value_at(value, *path)
    return found if isinstance(found, list) else []


def interval(value: object, *path: str) -> tuple[float, float] | None:
    """Return the two ends of the interval at `path`, if they are known."""
    ends = [number(end) for end in items(value, *path)]
    known = [end for end in ends if end is not None]
    return (known[0], known[1]) if len(known) == len(ends) == 2 else None
