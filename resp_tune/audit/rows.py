"""Write an audit's values as rows of text, the same for the terminal and the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from resp_tune.audit.counts import in_order
from resp_tune.common.choices import CYCLE_METRICS, METRIC_MODES
from resp_tune.common.text import amount
from resp_tune.reporting.format import NONE, figure, metric_name, ranged, signed
from resp_tune.training.metrics import CYCLE_CLASSES

CONTROLLED = "Children on the Meditron"
TABLES = {
    "diagnosis_by_device": "Diagnosis × device: recordings (patients)",
    "diagnosis_by_age": "Diagnosis × age in years: recordings (patients)",
    "device_by_age": "Device × age in years: recordings (patients)",
}
Rows = list[Sequence[str]]


def size(cell: Mapping[str, int] | None) -> str:
    """Return `646 (32)`: recordings and, in brackets, their patients."""
    return NONE if cell is None else f"{cell['recordings']} ({cell['patients']})"


def with_interval(metrics: Mapping[str, Any], name: str) -> str:
    """Return `0.505 [0.410, 0.600]`; a metric of a single patient has no interval."""
    return ranged(metrics[name], *metrics["intervals"].get(name, (None, None)))


def column_names(rows: Mapping[str, Mapping[str, Any]]) -> Sequence[str]:
    """Return the columns of a table, age groups from young to old."""
    return in_order(column for cells in rows.values() for column in cells)


def leak_rows(leaks: Mapping[str, Mapping[str, Any]]) -> Rows:
    """Return protocol, patients, sessions, share of leaked recordings, classes, split sizes."""
    rows: Rows = []
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
    """Return why this data set does not allow a protocol, a line each."""
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
    """Return why a task has no baselines, a line each."""
    scores = {**found["baselines"], CONTROLLED: found["controlled"]["baselines"] or {}}
    return [f"{task}: {one['reason']}" for task, one in scores.items() if "reason" in one]


def baseline_rows(found: Mapping[str, Any]) -> Rows:
    """Return a row a task: chance, majority accuracy, balanced accuracy and macro-F1 of both."""
    rows: Rows = []
    scored = {**found["baselines"], CONTROLLED: found["controlled"]["baselines"]}
    for task, scores in scored.items():
        if scores is None or scores["device"] is None:
            rows.append((task, *[NONE] * 6))
            continue
        of_columns = [
            scores[columns][metric]
            for columns in ("device", "all")
            for metric in ("balanced_accuracy", "macro_f1")
        ]
        values = (scores["chance"], scores["majority_accuracy"], *of_columns)
        rows.append((task, *map(figure, values)))
    return rows


def model_rows(model: Mapping[str, Any]) -> Rows:
    """Return the test split by clip, patient and device; then baselines without audio."""
    test = model["test"]
    unit = "cycle" if model["task"] == "cycles" else "recording"
    rows = [_metrics_row(f"by {unit}", test["by_clip"])]
    if test["by_patient"]:
        rows.append(_metrics_row("by patient", test["by_patient"]))
    for device, found in test["by_device"].items():
        classes = _classes(found["classes"], model["classes"])
        rows.append(_metrics_row(f"within {device}, {classes}", found))
    for key, name in (("device", "device, no audio"), ("all", "metadata, no audio")):
        scores = test["baselines"][key]
        f1, balanced = figure(scores["macro_f1"]), figure(scores["balanced_accuracy"])
        rows.append((name, "", "", f1, balanced, "", ""))
    majority = figure(test["baselines"]["majority_accuracy"])
    rows.append(("majority class of the training split", *[""] * 4, majority, ""))
    return rows


def cycle_metrics(metrics: Mapping[str, Any]) -> str:
    """Return `ICBHI score 0.520 [0.480, 0.560], sensitivity …`, or nothing for other tasks."""
    there = [name for name in CYCLE_METRICS if name in metrics]
    return ", ".join(f"{metric_name(name)} {with_interval(metrics, name)}" for name in there)


def class_rows(per_class: Mapping[str, Mapping[str, Any]]) -> Rows:
    """Return class, recall, precision, clips, recall of its patients, and their number."""
    return [
        (
            name,
            figure(row["recall"]),
            figure(row["precision"]),
            str(row["support"]),
            figure(row.get("patient_recall")),
            str(row["patients"]),
        )
        for name, row in per_class.items()
    ]


def controlled_line(metrics: Mapping[str, Any] | None) -> str:
    """Return how well children on the Meditron are told apart, or nothing without metrics."""
    if not metrics:
        return ""
    return (
        f"{CONTROLLED}, healthy or sick: balanced accuracy "
        f"{with_interval(metrics, 'balanced_accuracy')}, AUROC {with_interval(metrics, 'auroc')} "
        f"({amount(metrics['clips'], 'clip', metrics['patients'])})"
    )


def cycle_rows(counts: Mapping[str, Any]) -> Rows:
    """Return the cycles of each class, in all and in each split of the challenge."""
    parts = {"all": counts, **{f"official {s}": part for s, part in counts["official"].items()}}
    return [
        (
            name,
            *(str(part["cycles_by_class"][c]) for c in CYCLE_CLASSES),
            *(str(part[key]) for key in ("cycles", "recordings", "patients")),
        )
        for name, part in parts.items()
    ]


def shortcut_rows(shortcuts: Mapping[str, Mapping[str, Any] | None]) -> Rows:
    """Return each tested shortcut: its measure here and when permuted, and whether it warns."""
    return [
        (
            s["measure"],
            *(figure(s[key]) for key in ("value", "by_chance", "limit")),
            f"{s['p_value']:.4f}",
            str(s["patients"]),
            "yes" if s["found"] else "no",
        )
        for s in shortcuts.values()
        if s
    ]


def baseline_difference_rows(
    differences: Mapping[str, Mapping[str, Mapping[str, Any]]],
) -> Rows:
    """Return the baseline and metric, the model's value, the baseline's, and the difference."""
    names = {"device": "device", "all": "metadata"}
    return [
        (f"{names[columns]}: {metric_name(metric)}", *_paired(found, "winner", "baseline"))
        for columns, metrics in differences.items()
        for metric, found in metrics.items()
    ]


def comparison_rows(metrics: Mapping[str, Mapping[str, Any]]) -> Rows:
    """Return each metric with its values of A and B, and the difference."""
    return [
        (
            metric_name(name) + " (less is better)" * (METRIC_MODES.get(name) == "min"),
            *_paired(found, "a", "b"),
        )
        for name, found in metrics.items()
    ]


def _paired(found: Mapping[str, Any], one: str, other: str) -> Sequence[str]:
    interval, inside = NONE, NONE
    if found["interval"] is not None:
        low, high = found["interval"]
        interval, inside = f"[{signed(low)}, {signed(high)}]", "yes" if low <= 0 <= high else "no"
    values = (figure(found[one]), figure(found[other]), signed(found["difference"]))
    return (*values, interval, inside)


def _metrics_row(name: str, found: Mapping[str, Any]) -> Sequence[str]:
    return (
        name,
        str(found["clips"]),
        str(found["patients"]),
        with_interval(found, "macro_f1"),
        with_interval(found, "balanced_accuracy"),
        figure(found["accuracy"]),
        figure(found["majority_accuracy"]),
    )


def _classes(there: Sequence[str], of: Sequence[str]) -> str:
    """Return `6 classes`, or the names of those that are, or are not, in the averages."""
    absent = [name for name in of if name not in there]
    if not absent:
        return f"{len(there)} classes"
    if len(absent) < len(there):
        return f"without {', '.join(absent)}"
    return f"{', '.join(there)} only"
