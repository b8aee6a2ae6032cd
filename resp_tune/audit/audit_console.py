"""Print an audit as tables on stdout; text from files is printed unchanged, never as markup."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from resp_tune.audit.sections import Section, audit_sections, blend_sections, compare_sections
from resp_tune.common.text import amount, one_line
from resp_tune.training.metrics import CYCLE_CLASSES

MIN_WIDTH = 100  # of a pipe or a file, which has no width of its own


def show(found: Mapping[str, Any]) -> None:
    """Print the audit of a data set, and of a model."""
    counts, data = found["counts"], found["data"]
    kind = "SYNTHETIC recording" if data["synthetic"] else "recording"
    classes = ", ".join(f"{name} {counts['cycles_by_class'][name]}" for name in CYCLE_CLASSES)
    size = (
        f"{data['name']}: {amount(counts['recordings'], kind, counts['patients'])} in "
        f"{counts['sessions']} sessions, {counts['hours']:.1f} h; {counts['cycles']} cycles "
        f"({classes})"
    )
    warnings = found["warnings"] or ["none: no shortcut was found"]
    _print([size], [*audit_sections(found), Section("Warnings", lines=warnings)])


def show_comparison(found: Mapping[str, Any]) -> None:
    """Print the difference of two models on each split that both have."""
    models = [f"{key.upper()}: {found[key]}" for key in ("a", "b")]
    left_out = (f"{split} is not compared: {why}" for split, why in found["left_out"].items())
    _print(models, compare_sections(found), left_out)


def show_blend(found: Mapping[str, Any]) -> None:
    """Print what the blend of two winners is worth."""
    weights = found["weights"]
    models = [f"{key.upper()}: {found[key]}, weight {weights[key]:g}" for key in ("a", "b")]
    _print(models, blend_sections(found))


def _print(first: Iterable[str], sections: Iterable[Section], last: Iterable[str] = ()) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(MIN_WIDTH, console.width)

    def print_line(line: str, style: str = "") -> None:
        console.print(Text(one_line(line), style), soft_wrap=True)

    for line in first:
        print_line(line)
    for section in sections:
        console.print()
        print_line(section.title, "bold")
        if section.rows:
            console.print(_table(section))
        for line in section.lines:
            print_line(f"  - {line}")
    for line in last:
        print_line(line)


def _table(section: Section) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column, header in enumerate(section.headers):
        text = column == 0 or header == ""
        justify: Literal["left", "right"] = "left" if text else "right"
        table.add_column(Text(one_line(header)), justify=justify, no_wrap=not text)
    for row in section.rows:
        table.add_row(*(Text(one_line(cell)) for cell in row))
    return table
