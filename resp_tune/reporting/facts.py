"""What the result files say, in the words and numbers of the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from resp_tune.reporting.files import Results, Row, items, mapping, number

LOWER_IS_BETTER = frozenset({"log_loss"})
BASELINES = {
    "device": "Device only",
    "all": "Device, place, age, sex only",
}
NAMES = {
    "macro_f1": "macro-F1",
    "balanced_accuracy": "balanced accuracy",
    "accuracy": "accuracy",
    "mcc": "MCC",
    "auroc": "AUROC",
    "log_loss": "log loss",
    "icbhi_score": "ICBHI score",
}


def metric_name(key: str) -> str:
    """A metric as a reader writes it."""
    return NAMES.get(key, key.replace("_", " "))


@dataclass(frozen=True)
class Bar:
    """One line of a comparison: a value in 0…1, its 95 % interval if it has one."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    ours: bool = False


@dataclass(frozen=True)
class Figure:
    """One metric of the winner on both sides; None where it is not known."""

    name: str
    validation: float | None
    test: float | None
    low: float | None
    high: float | None
    device: float | None
    all: float | None
    objective: bool


@dataclass(frozen=True)
class ClassRow:
    """A class on one side: share found (recall), share right of those named so (precision)."""

    name: str
    clips: int
    patients: int
    recall: float | None
    precision: float | None


@dataclass(frozen=True)
class Confusion:
    """True classes by row, predicted by column; `rows` are counts with shares of the row."""

    side: str
    classes: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[int, float], ...]], ...]
    per_class: tuple[ClassRow, ...]
    devices: tuple[tuple[str, int, float], ...]


def figures(summary: Mapping[str, Any]) -> list[Figure]:
    """Every metric of the winner, the one that was searched for first."""
    winner = mapping(summary.get("winner"))
    validation, test = mapping(winner.get("validation")), mapping(winner.get("test"))
    intervals, base = mapping(test.get("intervals")), mapping(summary.get("baselines"))
    metric = summary.get("metric")
    keys = [k for k in dict.fromkeys([metric, *NAMES, *validation]) if k in {*validation, *test}]
    return [
        Figure(
            metric_name(str(key)),
            number(validation.get(key)),
            number(test.get(key)),
            *_interval(intervals.get(key)),
            number(mapping(base.get("device")).get(key)),
            number(mapping(base.get("all")).get(key)),
            key == metric,
        )
        for key in keys
    ]


def comparison_metric(summary: Mapping[str, Any]) -> str:
    """The metric to set beside the baselines: the objective, where they have it."""
    metric = str(summary.get("metric"))
    known = mapping(mapping(summary.get("baselines")).get("device"))
    return metric if metric in known or not known else "macro_f1"


def comparison(summary: Mapping[str, Any]) -> list[Bar]:
    """The winner beside what can be had without listening, best evidence first."""
    metric = comparison_metric(summary)
    winner = mapping(summary.get("winner"))
    test, base = mapping(winner.get("test")), mapping(summary.get("baselines"))
    low, high = _interval(mapping(test.get("intervals")).get(metric))
    found = [
        Bar("Winner, test side", value, low, high, ours=True)
        for value in [number(test.get(metric))]
        if value is not None
    ]
    for label, source in (
        ("Winner, validation side", winner.get("validation")),
        *((label, base.get(key)) for key, label in BASELINES.items()),
    ):
        value = number(mapping(source).get(metric))
        if value is not None:
            found.append(Bar(label, value, ours=label.startswith("Winner")))
    return found


def verdict(summary: Mapping[str, Any]) -> str:
    """One sentence on whether the winner has learnt from sound."""
    metric = comparison_metric(summary)
    test = mapping(mapping(summary.get("winner")).get("test"))
    best = mapping(mapping(summary.get("baselines")).get("all"))
    device = mapping(mapping(summary.get("baselines")).get("device"))
    rival = max((v for v in (number(best.get(metric)), number(device.get(metric))) if v), default=0)
    value, (low, high) = (
        number(test.get(metric)),
        _interval(mapping(test.get("intervals")).get(metric)),
    )
    if value is None:
        return (
            "There is no reading of a test side: the validation figures are those the search "
            "chose by, and flatter it."
        )
    if not rival:
        return "No baseline without audio is known: what these figures are worth stays open."
    if low is None or high is None:
        side = "above" if value > rival else "not above"
        return f"On the test side it stands {side} the best baseline without audio ({rival:.3f})."
    if low > rival:
        return (
            f"The whole 95 % interval lies above the best baseline without audio ({rival:.3f}): "
            "the model has learnt from the sound."
        )
    if high < rival:
        return (
            f"The whole 95 % interval lies below the best baseline without audio ({rival:.3f}): "
            "the stethoscope and the patient's age tell more than this model does."
        )
    return (
        f"The 95 % interval holds the best baseline without audio ({rival:.3f}): on this test "
        "side it cannot be told whether the model has learnt more than who was recorded with what."
    )


def price(summary: Mapping[str, Any]) -> tuple[float, str] | None:
    """By how much validation flatters the winner, and a sentence on it."""
    metric, winner = str(summary.get("metric")), mapping(summary.get("winner"))
    validation = number(mapping(winner.get("validation")).get(metric))
    test = number(mapping(winner.get("test")).get(metric))
    if validation is None or test is None:
        return None
    gap = test - validation if metric in LOWER_IS_BETTER else validation - test
    if gap > 0:
        return gap, (
            "The winner does worse on the test side than on the side it was chosen by. The best of "
            "many trials is partly lucky, and the sides hold different patients."
        )
    return gap, (
        "The winner does no worse on the test side than on the side it was chosen by; with so few "
        "patients that is chance as well."
    )


def confusion(results: Results) -> Confusion | None:
    """Predictions of the winner on the test side, of validation where there is no test side."""
    for side in ("test", "validation"):
        rows = [row for row in results.predictions if row["side"] == side]
        if rows:
            return _confusion(side, rows, items(results.summary.get("classes")))
    return None


def _confusion(side: str, rows: Sequence[Row], known: Sequence[Any]) -> Confusion:
    seen = {row["label"] for row in rows} | {row["predicted"] for row in rows}
    named = [str(c) for c in known]
    classes = (*named, *sorted(seen - set(named)))
    count = Counter((row["label"], row["predicted"]) for row in rows)
    truths, answers = Counter(r["label"] for r in rows), Counter(r["predicted"] for r in rows)
    devices = Counter(row.get("device", "") for row in rows)
    right = Counter(r.get("device", "") for r in rows if r["label"] == r["predicted"])
    return Confusion(
        side,
        classes,
        tuple(
            (t, tuple((count[t, p], count[t, p] / max(truths[t], 1)) for p in classes))
            for t in classes
        ),
        tuple(
            ClassRow(
                c,
                truths[c],
                len({row.get("patient", "") for row in rows if row["label"] == c}),
                count[c, c] / truths[c] if truths[c] else None,
                count[c, c] / answers[c] if answers[c] else None,
            )
            for c in classes
        ),
        tuple((d, n, right[d] / n) for d, n in sorted(devices.items()) if d),
    )


def _interval(value: object) -> tuple[float | None, float | None]:
    ends = [number(v) for v in items(value)]
    return (ends[0], ends[1]) if len(ends) == 2 else (None, None)
