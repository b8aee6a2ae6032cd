"""Public functions and types, for use from Python: `from resp_tune.api import load_dataset`.

Only the first argument of a function is positional. A wrong input raises `UserError`, a failure
while running raises `RunError`; both are `RespTuneError`s with a message of one line. What is found
but need not stop anyone is in the results (`Dataset.problems`) or logged to the logger `resp_tune`.
"""

from __future__ import annotations

from resp_tune.data.annotations import Cycle
from resp_tune.data.dataset import Dataset, Recording, load_dataset
from resp_tune.errors import RespTuneError, RunError, UserError

__all__ = [
    "Cycle",
    "Dataset",
    "Recording",
    "RespTuneError",
    "RunError",
    "UserError",
    "load_dataset",
]
