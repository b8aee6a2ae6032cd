"""The audit as tables on stdout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from resp_tune.audit.rows import (
    CONTROLLED,
    TABLES,
    against_rows,
    baseline_reasons,
    baseline_rows,
    columns_of,
    comparison_rows,
    cycle_line,
    leak_reasons,
    leak_rows,
    model_rows,
    share,
    span,
)
from resp_tune.common.text import amount, one_line
from resp_tune.reporting.format import figure
from resp_tune.training.metrics import CYCLE_CLASSES

LEAST_WIDTH = 100  # of a pipe or a file, where no terminal says how wide it is


def show(found: Mapping[str, Any]) -> None:
    """Print the audit; everything that comes from files is printed as it is, never as markup."""
    console = _console()
    _data(console, found)
    _lines(console, "Defects", found["defects"])
    for name, title in TABLES.items():
        _print_table(console, title, *_crossed(found["tables"][name]))
    _print_table(
        console,
        "Leaks: on more than one side; held-out recordings whose patient is trained on",
        ("protocol", "patients", "sessions", "leaked", "task, classes", "recordings"),
        leak_rows(found["leaks"]),
    )
    _reasons(console, leak_reasons(found["leaks"]))
    _lookup(console, found["patient_lookup"])
    _print_table(
        console,
        "Without any audio, by patient (sheet: device, location, age, sex)",
        ("task", "chance", "majority", "device BA", "device F1", "sheet BA", "sheet F1"),
        baseline_rows(found),
    )
    _reasons(console, baseline_reasons(found))
    if "model" in found:
        _model(console, found["model"])
    _lines(console, "Warnings", found["warnings"] or ["none: no shortcut was found"])


def show_comparison(found: Mapping[str, Any]) -> None:
    """Print the difference of two runs on each side that both have."""
    console = _console()
    console.print(Text(one_line(f"A: {found['a']}")), Text(one_line(f"B: {found['b']}")), sep="\n")
    for side, figures in found["sides"].items():
        size = amount(figures["clips"], "clip", figures["patients"])
        _print_table(
            console,
            f"{side}: {size}, {', '.join(figures['classes'])}",
            ("", "A", "B", "A - B", "95 % interval", "0 inside"),
            comparison_rows(figures["metrics"]),
        )
        if side == "validation":
            console.print(
                Text(
                    "  the side that runs are chosen by: what was chosen stands too high here. All "
                    "clips together, of a winner after averaging over its seeds; a search's own "
                    "scores are means over its folds and seeds, so they differ where it has several"
                ),
                soft_wrap=True,
            )
    for side, reason in found["left_out"].items():
        console.print(Text(one_line(f"\n{side} is not compared: {reason}")), soft_wrap=True)


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
        console.print(Text(f"  not for this set: {lookup['reason']}"))
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
        "Test side, with 95 % patient-bootstrap intervals",
        ("", "clips", "patients", "macro-F1", "balanced accuracy", "accuracy", "majority"),
        model_rows(model),
    )
    if line := cycle_line(test["by_clip"]):
        console.print(Text(f"  {line}"), soft_wrap=True)
    _print_table(
        console,
        "Against what needs no audio, on the same patients drawn",
        ("", "model", "no audio", "difference", "95 % interval", "0 inside"),
        against_rows(test["against"]),
    )
    rows = [
        (
            name,
            figure(row["recall"]),
            figure(row["precision"]),
            str(row["support"]),
            figure(row.get("patient_recall")),
            str(row["patients"]),
        )
        for name, row in test["per_class"].items()
    ]
    _print_table(
        console,
        "Each class",
        ("class", "recall", "precision", "clips", "patients' recall", "patients"),
        rows,
    )
    if test["controlled"]:
        found = test["controlled"]
        console.print(
            Text(
                f"{CONTROLLED}, healthy or sick: balanced accuracy "
                f"{span(found, 'balanced_accuracy')}, AUROC {span(found, 'auroc')} "
                f"({found['clips']} clips of {found['patients']} patients)"
            )
        )


def _crossed(
    rows: Mapping[str, Mapping[str, Mapping[str, int]]],
) -> tuple[Sequence[str], list[Sequence[str]]]:
    columns = columns_of(rows)
    lines = [
        (name, *(share(cells.get(column)) for column in columns)) for name, cells in rows.items()
    ]
    return ("", *columns), list(lines)


def _print_table(
    console: Console, title: str, headers: Sequence[str], rows: Iterable[Sequence[str]]
) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for place, header in enumerate(headers):
        words = place == 0 or header == ""
        table.add_column(
            Text(one_line(header)), justify="left" if words else "right", no_wrap=not words
        )
    for row in rows:
        table.add_row(*(Text(one_line(cell)) for cell in row))
    console.print(Text(f"\n{title}", "bold"), soft_wrap=True)
    console.print(table)


def _reasons(console: Console, reasons: Sequence[str]) -> None:
    for reason in reasons:
        console.print(Text(f"  {one_line(reason)}", "dim"), soft_wrap=True)


def _lines(console: Console, title: str, lines: Sequence[str]) -> None:
    console.print(Text(f"\n{title}", "bold"))
    for line in lines or ["none found"]:
        console.print(Text(f"  - {one_line(line)}"), soft_wrap=True)
