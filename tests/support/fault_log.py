"""What was seen of each fault: a line a fault in the file that `$RESP_TUNE_FAULTS` names.

`scripts/fault_table.py` makes the table of `docs/reliability.md` of it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

# With it every moment and place of a fault; else, as in CI, a fixed half of the longest lists.
THOROUGH = bool(os.environ.get("RESP_TUNE_THOROUGH"))


def survived(fault: str, seconds: float | None = None, *, times: int = 1) -> None:
    """`fault` was done `times` over and everything held; `seconds` the longest recovery took."""
    if path := os.environ.get("RESP_TUNE_FAULTS"):
        line = json.dumps({"fault": fault, "times": times, "seconds": seconds})
        with Path(path).open("a") as file:
            file.write(line + "\n")
