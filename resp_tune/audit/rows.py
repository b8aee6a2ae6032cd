"""The audit's values as rows of text, the same for the terminal and the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from resp_tune.audit.counts import in_order
from resp_tune.common.choices import CYCLE_METRICS, METRIC_MODES
from resp_tune.reporting.format import (
    NONE,
    figure,
    metric_name,
    ranged,
    signed,
)

CONTROLLED = "Children on the Meditron"
TABLES = {
    "diagnosis_by_device": "Diagnosis × device: recordings (patients)",
    "diagnosis_by_age": "Diagnosis × age in years: recordings (patients)",
    "device_by_age": "Device × age in years: recordings (patients)",
}


def share(cell: Mapping[str, int] | None) -> str:
    """`646 (32)`: recordings and, in brackets, their patients."""
    return NONE if cell is None else f"{cell['recordings']} ({cell['patients']})"


def span(figures: Mapping[str, Any], name: str) -> str:
    """`0.505 [0.410, 0.600]`; without brackets where a single patient leaves nothing to draw."""
    return ranged(figures[name], *figures["intervals"].get(name, (None, None)))


def columns_of(rows: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    """The columns of a table, age groups from young to old."""
    return in_order(column for cells in rows.values() for column in cells)


def leak_rows(leaks: Mapping[str, Mapping[str, Any]]) -> list[Sequence[str]]:
    """Protocol, patients, sessions, share of leaked recordings, classes, sizes of the sides."""
    rows: list[Sequence[str]] = []
    for name, found in _protocols(leaks):
        if found["patients"] is None:
            rows.append((name, *[NONE] * 4, "see below"))
            continue
        leaked = f"{100 * found['recording_share']:.1f} %"
        sizes = " + ".join(str(n) for n in found.get("recordings", {}).values())
        classes = f"{found['task']}, {len(found['classes'])}" if sizes else ""
        rows.append((name, str(found["patients"]), str(found["sessions"]), leaked, classes, sizes))
    return rows


def leak_reasons(leaks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Why a protocol cannot be had from this data set, a line each."""
    return [f"{name}: {found['reason']}" for name, found in _protocols(leaks) if "reason" in found]


def _protocols(leaks: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for protocol, found in leaks.items():
        held_out = found.get("held_out", {})
        if not held_out:
            yield protocol, found
        for device, one in held_out.items():
            yield f"{protocol}: {device}", one
        if dropped := found.get("without_shared_patients"):
            yield f"{protocol}, shared dropped", dropped


def baseline_reasons(found: Mapping[str, Any]) -> list[str]:
    """Why a task has no baselines, a line each."""
    scores = {**found["baselines"], CONTROLLED: found["controlled"]["baselines"] or {}}
    return [f"{task}: {one['reason']}" for task, one in scores.items() if "reason" in one]


def baseline_rows(found: Mapping[str, Any]) -> list[Sequence[str]]:
    """A row a task: chance, majority accuracy, then balanced accuracy and macro-F1 of both."""
    rows: list[Sequence[str]] = []
    for task, scores in {
        **found["baselines"],
        CONTROLLED: found["controlled"]["baselines"],
    }.items():
        if scores is None or scores["device"] is None:
            rows.append((task, *[NONE] * 6))
            continue
        rows.append(
            (
                task,
                figure(scores["chance"]),
                figure(scores["majority_accuracy"]),
                *(
                    figure(scores[columns][metric])
                    for columns in ("device", "all")
                    for metric in ("balanced_accuracy", "macro_f1")
                ),
            )
        )
    return rows


def model_rows(model: Mapping[str, Any]) -> list[Sequence[str]]:
    """The test side by clip, by patient and within each device; then what needs no audio."""
    test = model["test"]
    unit = "cycle" if model["task"] == "cycles" else "recording"
    rows = [_figures_row(f"by {unit}", test["by_clip"])]
    if test["by_patient"]:
        rows.append(_figures_row("by patient", test["by_patient"]))
    for device, found in test["by_device"].items():
        classes = _classes(found["classes"], model["classes"])
        rows.append(_figures_row(f"within {device}, {classes}", found))
    for key, name in (("device", "device, no audio"), ("all", "sheet, no audio")):
        scores = test["baselines"][key]
        f1, balanced = figure(scores["macro_f1"]), figure(scores["balanced_accuracy"])
        rows.append((name, "", "", f1, balanced, "", ""))
    rows.append(
        (
            "majority class trained on",
            *[""] * 4,
            figure(test["baselines"]["majority_accuracy"]),
            "",
        )
    )
    return rows


def cycle_line(figures: Mapping[str, Any]) -> str:
    """`ICBHI score 0.520 [0.480, 0.560], sensitivity …`; empty for what are no cycles."""
    there = [name for name in CYCLE_METRICS if name in figures]
    return ", ".join(f"{metric_name(name)} {span(figures, name)}" for name in there)


def against_rows(against: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[Sequence[str]]:
    """What the forests saw and the metric, the model's figure, theirs, and the difference."""
    names = {"device": "device", "all": "sheet"}
    return [
        (f"{names[columns]}: {metric_name(metric)}", *_paired(found, "winner", "baseline"))
        for columns, metrics in against.items()
        for metric, found in metrics.items()
    ]


def comparison_rows(metrics: Mapping[str, Mapping[str, Any]]) -> list[Sequence[str]]:
    """Metric, the figures of A and B, and the difference."""
    return [
        (
            metric_name(name) + " (less is better)" * (METRIC_MODES.get(name) == "min"),
            *_paired(found, "a", "b"),
        )
        for name, found in metrics.items()
    ]


def _paired(found: Mapping[str, Any], one: str, other: str) -> Sequence[str]:
    span = found["interval"]
    inside = (
        (NONE, NONE)
        if span is None
        else (f"[{signed(span[0])}, {signed(span[1])}]", "yes" if span[0] <= 0 <= span[1] else "no")
    )
    return (figure(found[one]), figure(found[other]), signed(found["difference"]), *inside)


def _figures_row(name: str, found: Mapping[str, Any]) -> Sequence[str]:
    return (
        name,
        str(found["clips"]),
        str(found["patients"]),
        span(found, "macro_f1"),
        span(found, "balanced_accuracy"),
        figure(found["accuracy"]),
        figure(found["majority_accuracy"]),
    )


def _classes(there: Sequence[str], of: Sequence[str]) -> str:
    """`6 classes`, or which ones: those left out of the averages are named."""
    absent = [name for name in of if name not in there]
    if not absent:
        return f"{len(there)} classes"
    if len(absent) < len(there):
        return f"without {', '.join(absent)}"
    return f"{', '.join(there)} only"
