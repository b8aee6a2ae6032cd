"""Breathing cycles, read from the annotation file that stands beside a recording."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from resp_tune.common.text import shorten

# The annotators' clock and the audio's length round differently; a few milliseconds are no error.
END_TOLERANCE = 0.05


@dataclass(frozen=True)
class Cycle:
    """One breathing cycle: `start` and `end` in seconds from the recording's first sample."""

    start: float
    end: float
    crackle: bool
    wheeze: bool

    @property
    def seconds(self) -> float:
        """Length in seconds, above 0."""
        return self.end - self.start


def parse_cycles(text: str, seconds: float) -> tuple[tuple[Cycle, ...], tuple[str, ...]]:
    """The cycles of an annotation file, sorted by start, and a line for each thing wrong with it.

    A line of the file is `start end crackle wheeze` (seconds, seconds, 0/1, 0/1), with tabs or
    spaces between. A line that says something else is left out and named; a cycle that ends after
    `seconds`, the recording's length, is cut there (named when it is more than `END_TOLERANCE`
    late), and left out when it starts there.
    """
    cycles: list[Cycle] = []
    problems: list[str] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        cycle = _cycle(line)
        if isinstance(cycle, str):
            problems.append(
                f"line {number}, '{shorten(line.strip())}': {cycle}; the line is left out"
            )
        elif cycle.start >= seconds:
            problems.append(
                f"line {number}: the cycle starts at {cycle.start:g} s, but the recording is "
                f"{seconds:g} s long; the line is left out"
            )
        else:
            if cycle.end > seconds + END_TOLERANCE:
                problems.append(
                    f"line {number}: the cycle ends at {cycle.end:g} s, but the recording is "
                    f"{seconds:g} s long; the cycle is cut there"
                )
            end = min(cycle.end, seconds)
            cycles.append(Cycle(cycle.start, end, cycle.crackle, cycle.wheeze))
    cycles.sort(key=lambda cycle: (cycle.start, cycle.end))
    overlaps = sum(later.start < earlier.end - END_TOLERANCE for earlier, later in pairwise(cycles))
    if overlaps:
        problems.append(f"{overlaps} of {len(cycles)} cycles start before the one before them ends")
    return tuple(cycles), tuple(problems)


def _cycle(line: str) -> Cycle | str:
    """The cycle that a line stands for, or what is wrong with the line."""
    fields = line.split()
    if len(fields) != 4:
        return f"{len(fields)} fields instead of start, end, crackle, wheeze"
    try:
        start, end, crackle, wheeze = (float(field) for field in fields)
    except ValueError:
        return "start, end, crackle and wheeze must be numbers"
    if not (math.isfinite(start) and math.isfinite(end)):
        return "start and end must be finite"
    if not 0 <= start < end:
        return "start must be at least 0 and below end"
    if crackle not in (0, 1) or wheeze not in (0, 1):
        return "crackle and wheeze must be 0 or 1"
    return Cycle(start, end, crackle == 1, wheeze == 1)
