"""The faults that the tests of a session planted and survived: pytest prints them as a table.

With pytest-xdist, the workers send theirs to the controller. `docs/reliability.md` shows the table.
"""

from __future__ import annotations

import os

import pytest

# True runs every moment and place of a fault; False a fixed part of the longest lists.
THOROUGH = bool(os.environ.get("RESP_TUNE_THOROUGH"))

Faults = dict[str, tuple[int, float | None]]  # times, seconds of the longest recovery

faults: Faults = {}  # of this process
_KEY = "resp_tune_faults"


def survived(fault: str, seconds: float | None = None, *, times: int = 1) -> None:
    """Record that `fault` was planted `times` times and everything promised held.

    `seconds` is the time of the recovery, or of the longest one.
    """
    add(faults, fault, times, seconds)


def add(to: Faults, fault: str, times: int, seconds: float | None) -> None:
    """Add the times of a fault to `to`, and keep the longest recovery."""
    before, longest = to.get(fault, (0, None))
    known = [value for value in (longest, seconds) if value is not None]
    to[fault] = (before + times, max(known, default=None))


def table(of: Faults) -> list[str]:
    """Return the lines of a Markdown table."""
    lines = ["| fault | times | longest recovery |", "|---|---|---|"]
    for fault, (times, seconds) in of.items():
        took = "–" if seconds is None else f"{seconds:.1f} s"
        lines.append(f"| {fault} | {times:,} | {took} |")
    return lines


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Send the faults of a worker to the controller."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output[_KEY] = faults


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object) -> None:
    """Add the faults of a worker that has ended."""
    for fault, (times, seconds) in getattr(node, "workeroutput", {}).get(_KEY, {}).items():
        add(faults, fault, times, seconds)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table."""
    if faults:
        terminalreporter.section("faults survived")
        for line in table(faults):
            terminalreporter.write_line(line)
