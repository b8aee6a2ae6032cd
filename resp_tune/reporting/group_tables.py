"""Tabulate the winner's predictions by class, by patient, by device and of children."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from resp_tune.common.choices import LEVELS, at_level
from resp_tune.common.text import amount
from resp_tune.reporting.dot_plots import DotTable, Line, Mark, dot_table
from resp_tune.reporting.format import NONE, figure, metric_name, ranged
from resp_tune.reporting.json_values import Row, interval, items, mapping, number

LEVEL_METRICS = (
    "macro_f1",
    "balanced_accuracy",
    "accuracy",
    "auroc",
    "log_loss",
    "balanced_log_loss",
)
FEW = 5  # patients; below it one of them moves a share by more than 20 points
UNIT = (0.0, 1.0)


@dataclass(frozen=True)
class ClassRow:
    """A class in one split; `patient_recall` is of its patients, from all their clips."""

    name: str
    clips: int
    patients: int
    recall: float | None
    precision: float | None
    patient_recall: float | None = None


@dataclass(frozen=True)
class Confusion:
    """True classes by row, predicted by column; `rows` are counts with shares of the row.

    `devices` holds the name, clips and accuracy of each.
    """

    split: str
    classes: tuple[str, ...]
    rows: tuple[tuple[str, tuple[tuple[int, float], ...]], ...]
    per_class: tuple[ClassRow, ...]
    devices: tuple[tuple[str, int, str], ...]


def confusion(summary: Mapping[str, Any], predictions: Sequence[Row]) -> Confusion | None:
    """Return the winner's confusions on the test split, or on validation if there is none."""
    for split in ("test", "validation"):
        rows = [row for row in predictions if row["side"] == split]
        if rows:
            return _confusion(split, rows, items(summary, "classes"))
    return None


def _confusion(split: str, rows: Sequence[Row], known: Sequence[Any]) -> Confusion:
    count = Counter((row["label"], row["predicted"]) for row in rows)
    truths, answers = Counter(r["label"] for r in rows), Counter(r["predicted"] for r in rows)
    classes = tuple(dict.fromkeys([*map(str, known), *sorted(truths | answers)]))
    devices = Counter(row.get("device", "") for row in rows)
    right = Counter(r.get("device", "") for r in rows if r["label"] == r["predicted"])
    return Confusion(
        split,
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
        tuple((d, n, figure(right[d] / n)) for d, n in sorted(devices.items()) if d),
    )


def class_rows(summary: Mapping[str, Any]) -> tuple[ClassRow, ...]:
    """Return each class on the test split, from the summary; older summaries have none."""
    return tuple(
        ClassRow(
            str(name),
            *(int(number(row, key) or 0) for key in ("support", "patients")),
            *(number(row, key) for key in ("recall", "precision", "patient_recall")),
        )
        for name, row in mapping(summary, "winner", "test", "per_class").items()
    )


def class_table(rows: Sequence[ClassRow]) -> DotTable | None:
    """Return the recall of each class, by clip and, if known, by patient."""
    by_patient = any(row.patient_recall is not None for row in rows)
    lines = []
    for row in rows:
        marks = [
            Mark(value, kind, f"{value:.3f} of {what}")
            for value, kind, what in (
                (row.recall, "dot", "its clips"),
                (row.patient_recall, "ring", "its patients"),
            )
            if value is not None
        ]
        recalls = (row.recall, row.patient_recall) if by_patient else (row.recall,)
        shares = (figure(value) for value in (*recalls, row.precision))
        cells = (*shares, str(row.clips), str(row.patients))
        lines.append(Line(row.name, tuple(marks), cells, tone=_pale(row.patients)))
    named = ("recall", *["patients’ recall"] * by_patient, "precision")
    headers = ("class", "recall", *named, "clips", "patients")
    legend = (("dot", "of its clips"), ("ring", "of its patients"))
    return dot_table(headers, lines, limits=UNIT, legend=legend)


def subgroups(summary: Mapping[str, Any], predictions: Sequence[Row]) -> DotTable | None:
    """Return a metric of the test split: of all clips, by patient, by device, of children."""
    test = mapping(summary, "winner", "test")
    if not (devices := mapping(test, "by_device")):
        return None
    # Comparable across groups with few classes.
    metric = "icbhi_score" if "icbhi_score" in test else "balanced_accuracy"
    rows = class_rows(summary)
    whole = {
        **test,
        "clips": sum(row.clips for row in rows),
        "patients": len({r.get("patient") for r in predictions if r["side"] == "test"}),
        "classes": [row.name for row in rows if row.clips],
    }
    named = [
        ("All clips", "", whole, "ours"),
        ("By session", "from all recordings of a session", test.get("by_session"), ""),
        ("By patient", "from all recordings of a patient", test.get("by_patient"), ""),
        *((f"Only {name}", "", fields, "") for name, fields in devices.items()),
        ("Children on the Meditron", "healthy or sick", test.get("controlled"), ""),
    ]
    lines = [line for row in named for line in _subgroup(metric, *row)]
    headers = ("", metric_name(metric), "with 95 % interval", "clips", "patients")
    legend = (("chance", "always predicting one class"),)
    return dot_table(headers, lines, limits=UNIT, legend=legend)


def level_rows(summary: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Return metrics of the winner on validation and test, by recording, session and patient.

    Empty for cycles, and for summaries of release 0.1.0.
    """
    winner = mapping(summary, "winner")
    rows = []
    for name in LEVEL_METRICS:
        keys = [at_level(name, level) for level in LEVELS]
        validation = [figure(number(winner, "validation", key)) for key in keys]
        test = mapping(winner, "test")
        tested = [ranged(number(test, key), interval(test, "intervals", key)) for key in keys]
        if NONE not in validation:
            rows.append((metric_name(name), [*validation, *tested]))
    return rows


def children(summary: Mapping[str, Any]) -> str:
    """Return the AUROC of healthy against sick children on the Meditron, and their number."""
    found = mapping(summary, "winner", "test", "controlled")
    area, clips, patients = (number(found, key) for key in ("auroc", "clips", "patients"))
    if not clips or not patients:
        return ""
    return f"AUROC {figure(area)} on {amount(int(clips), 'clip', int(patients))}"


def _subgroup(metric: str, label: str, note: str, fields: Any, tone: str) -> Iterator[Line]:
    """Yield the line of a group's metrics, if they are known."""
    value, classes = number(fields, metric), items(fields, "classes")
    if value is None:
        return
    span = interval(fields, "intervals", metric)
    alone = len(classes) == 1
    chance = 0.5 if metric == "icbhi_score" else 1 / max(len(classes), 1)
    marks = [Mark(chance, "chance")] if len(classes) > 1 else []
    counts = [number(fields, key) for key in ("clips", "patients")]
    yield Line(
        label,
        (*marks, Mark(value, "dot", f"{value:.3f}")),
        (ranged(value, span), *(f"{n:.0f}" if n else NONE for n in counts)),
        f"{classes[0]} alone: its recall" if alone else note,
        span,
        tone or ("pale" if alone else _pale(counts[1])),
    )


def _pale(patients: float | None) -> str:
    return "pale" if patients is not None and patients < FEW else ""
