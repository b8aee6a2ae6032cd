"""Read the result files of a search, of which any but the summary may be missing or damaged."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resp_tune.common.choices import at_level
from resp_tune.errors import UserError

Row = Mapping[str, str]

_LARGEST = 1e300  # leaves room below the largest float for margins and sums


@dataclass(frozen=True)
class Results:
    """The files of a search's folder. Tables are rows of text by column, empty if missing.

    `gaps` has a sentence for every file that is missing or damaged. `pooled`: the test predictions
    of all outer folds of a nested search.
    """

    summary: Mapping[str, Any]
    trials: Sequence[Row]
    epochs: Sequence[Row]
    predictions: Sequence[Row]
    config: Mapping[str, Any]
    gaps: tuple[str, ...]
    pooled: Sequence[Row] = ()


def read_results(folder: Path) -> Results:
    """Read the results in `folder`; raises `UserError` without a readable summary."""
    summary = _summary(folder / "summary.json")
    gaps: list[str] = []
    trials = _table(folder / "trials.csv", ("number", "state", "score"), gaps)
    epochs = _table(folder / "epochs.csv", ("number", "epoch"), gaps)
    winner = folder / "winner"
    needed = ("side", "label", "predicted")
    predictions = _table(winner / "predictions.csv", needed, gaps)
    pooled: Sequence[Row] = ()
    if mapping(summary, "pooled"):
        pooled = _table(folder / "predictions.csv", needed, gaps)
    config: Mapping[str, Any] = {}
    try:
        config = _object(winner / "config.json")
    except (OSError, ValueError) as error:
        gaps.append(_gap("winner/config.json", error))
    return Results(summary, trials, epochs, predictions, config, tuple(gaps), pooled)


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


def _summary(path: Path) -> Mapping[str, Any]:
    try:
        return _object(path)
    except FileNotFoundError:
        raise UserError(
            f"'{path.parent}' has no summary.json: the search has not finished; rerun its "
            "command to resume it"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"'{path}' cannot be read ({error}): rerun the search's command, which writes it again"
        ) from error


def _object(path: Path) -> Mapping[str, Any]:
    content = json.loads(path.read_bytes())
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")
    return content


def _table(path: Path, needed: Sequence[str], gaps: list[str]) -> Sequence[Row]:
    name = f"{path.parent.name}/{path.name}" if path.parent.name == "winner" else path.name
    try:
        with path.open(encoding="utf-8", newline="") as file:
            # strict: a stray quote would otherwise swallow the rest of the file in silence.
            reader = csv.DictReader(file, strict=True)
            rows = list(reader)
        missing = [column for column in needed if column not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"it has no column {', '.join(missing)}")
        if any(None in row or None in row.values() for row in rows):
            raise ValueError("it has rows of another length than its header")
    except (OSError, ValueError, csv.Error) as error:
        gaps.append(_gap(name, error))
        return ()
    return rows


def _gap(name: str, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{name} is missing: what is made from it is left out."
    reason = error.strerror if isinstance(error, OSError) else error
    return f"{name} cannot be read ({reason}): what is made from it is left out."
