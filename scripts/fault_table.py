"""The table of docs/reliability.md, of what the tests of faults have seen.

    RESP_TUNE_FAULTS=/tmp/faults.jsonl python -m pytest -m slow tests/test_interruptions.py
    python scripts/fault_table.py /tmp/faults.jsonl

Each line of the files given is one fault that was done and survived (`tests/support/fault_log.py`); a test
that fails writes none.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from pathlib import Path


def table(lines: Iterable[str]) -> str:
    """A row a fault: how often it was done, and the longest recovery in seconds."""
    times: dict[str, int] = {}
    longest: dict[str, float] = {}
    for line in lines:
        seen = json.loads(line)
        fault = seen["fault"]
        times[fault] = times.get(fault, 0) + seen["times"]
        if seen["seconds"] is not None:
            longest[fault] = max(longest.get(fault, 0.0), seen["seconds"])
    rows = ["| fault | times | longest recovery |", "|---|---|---|"]
    for fault, count in times.items():
        took = f"{longest[fault]:.1f} s" if fault in longest else "–"
        rows.append(f"| {fault} | {count:,} | {took} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table(line for path in sys.argv[1:] for line in Path(path).read_text().splitlines()))
