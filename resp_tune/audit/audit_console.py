"""Print an audit as tables on stdout; text from files is printed unchanged, never as markup."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from resp_tune.audit.sections import Section, audit_sections, compare_sections
from resp_tune.common.text import amount, one_line
from resp_tune.training.metrics import CYCLE_CLASSES

MIN_WIDTH = 100  # of a pipe or a file, which has no width of its own


def show(found: Mapping[str, Any]) -> None:
    """Print the audit of a data set, and of a model."""
    console = _console()
    counts, data = found["counts"], found["data"]
    kind = "SYNTHETIC recording" if data["synthetic"] else "recording"
    classes = ", ".join(f"{name} {counts['cycles_by_class'][name]}" for name in CYCLE_CLASSES)
    _print(
        console,
        f"{data['name']}: {amount(counts['recordings'], kind, counts['patients'])} in "
        f"{counts['sessions']} sessions, {counts['hours']:.1f} h; {counts['cycles']} cycles "
        f"({classes})",
    )
    for section in audit_sections(found):
        _print_section(console, section)
    warnings = found["warnings"] or ["none: no shortcut was found"]
    _print_section(console, Section("Warnings", lines=warnings))


def show_comparison(found: Mapping[str, Any]) -> None:
    """Print the difference of two models on each split that both have."""
    console = _console()
    for key in ("a", "b"):
        _print(console, f"{key.upper()}: {found[key]}")
    for section in compare_sections(found):
        _print_section(console, section)
    for split, reason in found["left_out"].items():
        _print(console, f"{split} is not compared: {reason}")


def _console() -> Console:
    console = Console(highlight=False)
    if console.is_terminal:
        return console
    return Console(highlight=False, width=max(MIN_WIDTH, console.width))


def _print(console: Console, text: str, style: str = "") -> None:
    console.print(Text(one_line(text), style), soft_wrap=True)


def _print_section(console: Console, section: Section) -> None:
    console.print()
    _print(console, section.title, "bold")
    if section.rows:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for column, header in enumerate(section.headers):
            text = column == 0 or header == ""
            table.add_column(
                Text(one_line(header)), justify="left" if text else "right", no_wrap=not text
            )
        for row in section.rows:
            table.add_row(*(Text(one_line(cell)) for cell in row))
        console.print(table)
    for line in section.lines:
        _print(console, f"  - {line}")
