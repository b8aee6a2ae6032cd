"""Breathing cycles, parsed from the annotation file of a recording."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
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
        cycle, length = _cycle(line), f"but the recording is {seconds:g} s long"
        if isinstance(cycle, str):
            shown = shorten(line.strip())
            problems.append(f"line {number}, '{shown}': {cycle}; the line is left out")
            continue
        where = f"line {number}: the cycle"
        if cycle.start >= seconds:
            problems.append(f"{where} starts at {cycle.start:g} s, {length}; the line is left out")
            continue
        if cycle.end > seconds + END_TOLERANCE:
            problems.append(f"{where} ends at {cycle.end:g} s, {length}; the cycle is cut there")
        cycles.append(replace(cycle, end=min(cycle.end, seconds)))
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
