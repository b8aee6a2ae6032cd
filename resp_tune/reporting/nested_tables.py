"""Tabulate what the outer folds of a nested search say of the procedure, searching included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from resp_tune.common.choices import LEVELS, at_level
from resp_tune.common.text import plural
from resp_tune.reporting.baseline_comparison import BASELINES
from resp_tune.reporting.dot_plots import DotTable, Line, Mark, dot_table
from resp_tune.reporting.format import NONE, figure, metric_name, ranged, signed
from resp_tune.reporting.group_tables import (
    LEVEL_METRICS,
    Confusion,
    class_rows,
    class_table,
    confusion,
    subgroups,
)
from resp_tune.reporting.json_values import Row, interval, items, mapping, number, objective

COMPARED = ("macro_f1", "balanced_accuracy")
LABELS = {"majority": "Most frequent class", **BASELINES}
_OUTCOMES = {
    "better": ("search better", "diamond"),
    "worse": ("baseline better", "diamond"),
    "open": ("inconclusive", "ring"),
}


@dataclass(frozen=True)
class FoldRow:
    """An outer fold; `report` is the address of its search's own page."""

    fold: int
    report: str
    cells: tuple[str, ...]


@dataclass(frozen=True)
class NestedTables:
    """The pooled test metrics of a nested search, and the outer folds that they come from.

    `headline` and `patient_headline` hold the metric's name, its value and its interval.
    """

    headline: tuple[str, float | None, tuple[float, float] | None]
    patient_headline: tuple[str, float | None, tuple[float, float] | None]
    size: str
    levels: tuple[tuple[str, tuple[str, ...]], ...]
    level_names: tuple[str, ...]
    folds: tuple[FoldRow, ...]
    metric: str
    price: str
    price_parts: tuple[str, str]
    forest: DotTable | None
    classes: DotTable | None
    groups: DotTable | None
    confusion: Confusion | None


def nested_tables(summary: Mapping[str, Any], predictions: Sequence[Row]) -> NestedTables | None:
    """Return the tables of a nested search; None for a search of one test split.

    `predictions` are the pooled ones.
    """
    pooled = mapping(summary, "pooled")
    if not pooled:
        return None
    metric = objective(summary)
    # The tables of a winner's test split serve for the pooled test splits as well.
    view = {**summary, "winner": {"test": pooled}}
    counts = [int(number(pooled, key) or 0) for key in ("clips", "patients")]
    folds = [fold for fold in items(summary, "outer") if number(fold, "fold") is not None]
    price = mapping(pooled, "price_of_searching")
    gap = number(price, "difference")
    levels = [level for level in LEVELS if number(pooled, at_level("macro_f1", level)) is not None]
    return NestedTables(
        headline=_headline(pooled, metric),
        patient_headline=_headline(pooled, at_level(str(summary.get("metric")), "patient")),
        size=f"{plural(counts[0], 'clip')} of {plural(counts[1], 'patient')}, "
        f"{plural(len(folds), 'outer fold')}",
        levels=tuple(
            (metric_name(name), tuple(_ranged(pooled, at_level(name, lv)) for lv in levels))
            for name in LEVEL_METRICS
            if number(pooled, name) is not None
        ),
        level_names=tuple(f"{level}s" for level in levels),
        folds=tuple(_fold_row(fold, metric) for fold in folds),
        metric=metric_name(metric),
        price=NONE if gap is None else signed(gap),
        price_parts=(figure(number(price, "best_validation")), figure(number(price, "test"))),
        forest=_forest(pooled),
        classes=class_table(class_rows(view)),
        groups=subgroups(view, predictions),
        confusion=confusion(view, predictions),
    )


def _headline(
    pooled: Mapping[str, Any], key: str
) -> tuple[str, float | None, tuple[float, float] | None]:
    return metric_name(key), number(pooled, key), interval(pooled, "intervals", key)


def _ranged(pooled: Mapping[str, Any], key: str) -> str:
    return ranged(number(pooled, key), interval(pooled, "intervals", key))


def _fold_row(fold: Mapping[str, Any], metric: str) -> FoldRow:
    which = int(number(fold, "fold") or 0)
    winner, test = mapping(fold, "winner"), mapping(fold, "test")
    trial = number(winner, "number")
    others = len(items(winner, "ensemble")) - 1
    more = f" and {others} more" if others > 0 else ""
    gap = number(winner, "price_of_searching", "difference")
    states = ", ".join(f"{n} {state}" for state, n in mapping(fold, "trials").items() if number(n))
    return FoldRow(
        which,
        f"outer/{which}/report.html",
        (
            *(f"{number(fold, key) or 0:.0f}" for key in ("clips", "patients")),
            NONE if trial is None else f"{trial:.0f}{more}",
            figure(number(winner, "validation", metric)),
            ranged(number(test, metric), interval(test, "intervals", metric)),
            NONE if gap is None else signed(gap),
            states,
        ),
    )


def _forest(pooled: Mapping[str, Any]) -> DotTable | None:
    """Return the paired differences to each baseline about a line at 0."""
    lines = []
    for name, label in LABELS.items():
        for metric in COMPARED:
            values = [number(value) for value in items(pooled, "differences", name, metric)]
            known = [value for value in values if value is not None]
            if len(known) != 3:
                continue
            difference, low, high = known
            outcome = "better" if low > 0 else "worse" if high < 0 else "open"
            words, shape = _OUTCOMES[outcome]
            cells = (f"{signed(difference)} [{signed(low)}, {signed(high)}]", words)
            note = f"{metric_name(metric)}: baseline " + figure(
                number(pooled, "baselines", name, metric)
            )
            lines.append(Line(label, (Mark(difference, shape),), cells, note, (low, high), outcome))
    headers = ("pooled minus", "difference", "with 95 % interval", "outcome")
    return dot_table(headers, lines, zero=True)
