"""Remarks on recordings that are used in spite of a defect."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple


class Remark(NamedTuple):
    """A defect that leaves a file usable: its kind, and what it is in this file."""

    kind: str
    detail: str

    def __str__(self) -> str:
        one, _, consequence = _TEXTS[self.kind]
        return f"{one} ({self.detail}): {consequence}"


_TEXTS = {  # of each kind: what is wrong with one and with several files, and what is done
    "unfinished": ("has an unfinished header", "have unfinished headers", "read to the end"),
    "cut off": ("is cut off", "are cut off", "what is there is used"),
    "channel": (
        "has too little sound on its first channel",
        "have too little sound on their first channel",
        "another channel is used",
    ),
    "above 1": ("exceeds ±1", "exceed ±1", "used as it is"),
    "integers": ("holds integers as floats", "hold integers as floats", "scaled to ±1"),
}


def remark_lines(remarks: Mapping[Path, Iterable[Remark]]) -> list[str]:
    """Return a line for each kind of remark, with the number of files and an example."""
    by_kind: dict[str, list[tuple[Path, Remark]]] = {}
    for path, own in remarks.items():
        for remark in own:
            by_kind.setdefault(remark.kind, []).append((path, remark))
    lines = []
    for kind, found in by_kind.items():
        (path, first), (_, several, consequence) = found[0], _TEXTS[kind]
        if len(found) == 1:
            lines.append(f"'{path}' {first}")
            continue
        what = f"{len(found)} recordings {several}"
        lines.append(f"{what}: {consequence}; e.g. '{path}' ({first.detail})")
    return lines
