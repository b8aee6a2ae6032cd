"""Print an audit as tables on stdout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from resp_tune.audit import rows
from resp_tune.common.text import amount, one_line
from resp_tune.training.metrics import CYCLE_CLASSES

LEAST_WIDTH = 100  # of a pipe or a file, where no terminal says how wide it is


def show(found: Mapping[str, Any]) -> None:
    """Print the audit; what comes from files is printed unchanged, never as markup."""
    console = _console()
    _data(console, found)
    _lines(console, "Defects", found["defects"])
    for name, title in rows.TABLES.items():
        table = found["tables"][name]
        columns = rows.column_names(table)
        sizes = [(row, *(rows.size(cells.get(c)) for c in columns)) for row, cells in table.items()]
        _print_table(console, title, ("", *columns), sizes)
    _print_table(
        console,
        "Leaks: in more than one split; held-out recordings whose patient is in training",
        ("protocol", "patients", "sessions", "leaked", "task, classes", "recordings"),
        rows.leak_rows(found["leaks"]),
    )
    _reasons(console, rows.leak_reasons(found["leaks"]))
    _lookup(console, found["patient_lookup"])
    _print_table(
        console,
        "Without any audio, by patient (metadata: device, location, age, sex)",
        ("task", "chance", "majority", "device BA", "device F1", "metadata BA", "metadata F1"),
        rows.baseline_rows(found),
    )
    _reasons(console, rows.baseline_reasons(found))
    if "model" in found:
        _model(console, found["model"])
    _lines(console, "Warnings", found["warnings"] or ["none: no shortcut was found"])


def show_comparison(found: Mapping[str, Any]) -> None:
    """Print the difference of two runs on each split that both have."""
    console = _console()
    console.print(Text(one_line(f"A: {found['a']}")), Text(one_line(f"B: {found['b']}")), sep="\n")
    for split, compared in found["sides"].items():
        size = amount(compared["clips"], "clip", compared["patients"])
        _print_table(
            console,
            f"{split}: {size}, {', '.join(compared['classes'])}",
            ("", "A", "B", "A - B", "95 % interval", "0 inside"),
            rows.comparison_rows(compared["metrics"]),
        )
        if split == "validation":
            note = (
                "  runs are selected on this split, so the metrics of a selected one are too high "
                "here. All clips are pooled, a winner's after averaging over its seeds; a search's "
                "own scores are means over its folds and seeds, so they differ where it has several"
            )
            console.print(Text(note), soft_wrap=True)
    for split, reason in found["left_out"].items():
        console.print(Text(one_line(f"\n{split} is not compared: {reason}")), soft_wrap=True)


def _console() -> Console:
    console = Console(highlight=False)
    if console.is_terminal:
        return console
    return Console(highlight=False, width=max(LEAST_WIDTH, console.width))


def _data(console: Console, found: Mapping[str, Any]) -> None:
    counts, data = found["counts"], found["data"]
    kind = "SYNTHETIC recordings" if data["synthetic"] else "recordings"
    classes = ", ".join(f"{name} {counts['cycles_by_class'][name]}" for name in CYCLE_CLASSES)
    console.print(
        Text(
            f"{one_line(data['name'])}: {counts['recordings']} {kind} of {counts['patients']} "
            f"patients in {counts['sessions']} sessions, {counts['hours']:.1f} h; "
            f"{counts['cycles']} cycles ({classes})"
        )
    )


def _lookup(console: Console, lookup: Mapping[str, Any]) -> None:
    console.print(
        Text("\nLooking up the patient, without audio (random split by recording)", "bold")
    )
    if "reason" in lookup:
        console.print(Text(f"  not possible for this set: {lookup['reason']}"))
        return
    names = {"accuracy": "accuracy", "macro_f1": "macro-F1", "balanced_accuracy": "balanced"}
    values = ", ".join(f"{text} {lookup[key]:.3f}" for key, text in names.items())
    console.print(Text(f"  {values}, task {lookup['task']}: what such a split rewards"))


def _model(console: Console, model: Mapping[str, Any]) -> None:
    who = f"{model['search']}, trial {model['trial']}, " if model["search"] else ""
    console.print(Text(f"\nModel: {one_line(who)}{model['task']}, {model['protocol']}", "bold"))
    test = model["test"]
    if test is None:
        console.print(Text(f"  {model['reason']}"))
        return
    _print_table(
        console,
        "Test split, with 95 % patient-bootstrap intervals",
        ("", "clips", "patients", "macro-F1", "balanced accuracy", "accuracy", "majority"),
        rows.model_rows(model),
    )
    if line := rows.cycle_metrics(test["by_clip"]):
        console.print(Text(f"  {line}"), soft_wrap=True)
    _print_table(
        console,
        "Against baselines without audio, on the same resamples of the patients",
        ("", "model", "no audio", "difference", "95 % interval", "0 inside"),
        rows.baseline_difference_rows(test["against"]),
    )
    _print_table(
        console,
        "Each class",
        ("class", "recall", "precision", "clips", "patients' recall", "patients"),
        rows.class_rows(test["per_class"]),
    )
    if line := rows.controlled_line(test["controlled"]):
        console.print(Text(line))


def _print_table(
    console: Console, title: str, headers: Sequence[str], lines: Iterable[Sequence[str]]
) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column, header in enumerate(headers):
        words = column == 0 or header == ""
        table.add_column(
            Text(one_line(header)), justify="left" if words else "right", no_wrap=not words
        )
    for line in lines:
        table.add_row(*(Text(one_line(cell)) for cell in line))
    console.print(Text(f"\n{title}", "bold"), soft_wrap=True)
    console.print(table)


def _reasons(console: Console, reasons: Sequence[str]) -> None:
    for reason in reasons:
        console.print(Text(f"  {one_line(reason)}", "dim"), soft_wrap=True)


def _lines(console: Console, title: str, lines: Sequence[str]) -> None:
    console.print(Text(f"\n{title}", "bold"))
    for line in lines or ["none found"]:
        console.print(Text(f"  - {one_line(line)}"), soft_wrap=True)
