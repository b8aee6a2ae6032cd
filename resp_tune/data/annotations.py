"""Breathing cycles, parsed from the annotation file of a recording."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

from resp_tune.common.text import shorten

# Seconds. The annotators' clock and the audio's length are rounded differently.
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
        """Return the length in seconds, above 0."""
        return self.end - self.start


def parse_cycles(text: str, seconds: float) -> tuple[tuple[Cycle, ...], tuple[str, ...]]:
    """Parse an annotation file into cycles, sorted by start, and one line per problem.

    Each line of the file is `start end crackle wheeze` (seconds, seconds, 0/1, 0/1), separated by
    tabs or spaces; any other line is reported and left out. `seconds` is the length of the
    recording: a cycle that starts after it is left out, one that ends after it is cut (and reported
    if by more than `END_TOLERANCE`).
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
    """Parse a line into a cycle; return what is wrong with it if that fails."""
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
