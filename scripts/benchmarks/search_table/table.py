"""The table of recorded trials: figures only, a row for each epoch of each fold of each trial.

`search_table.csv.gz` has the columns `trial`, `fold` (from 0), `epoch` (from 1), `seconds`, a
column `val_<metric>` for each metric of the fold's validation split, `unseen_<metric>` of the test
side of the split in the last epoch alone, and `params`: the parameters as the Optuna study stores
them, as JSON. `search_table.json` beside it says what was recorded, and by which commands.
"""

from __future__ import annotations

import gzip
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from resp_tune.common.paths import write_atomically
from resp_tune.errors import UserError

Floats = npt.NDArray[np.float64]
KEYS = ["trial", "fold", "epoch"]


@dataclass(frozen=True)
class SearchTable:
    """Recorded trials of one metric; NaN where a training had diverged before.

    `values` `[trials, folds, epochs]` are scores on the validation split of each fold, `seconds`
    the time of each epoch, and `unseen` `[trials, folds]` the score of each fold's network on
    patients that are in no fold. `params`: of each trial, as the Optuna study stores them.
    """

    metric: str
    params: tuple[dict[str, Any], ...]
    values: Floats
    seconds: Floats
    unseen: Floats

    @property
    def folds(self) -> int:
        """Return the number of folds."""
        return int(self.values.shape[1])

    @property
    def epochs(self) -> int:
        """Return the number of epochs of a fold."""
        return int(self.values.shape[2])


def read_frame(path: Path) -> pd.DataFrame:
    """Return the rows of a table on disk; raise `UserError` if it is missing or damaged."""
    try:
        return pd.read_csv(path)
    except FileNotFoundError:
        raise UserError(f"'{path}' does not exist: record a table first") from None
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"'{path}' is not a table of trials ({error})") from error


def write_frame(path: Path, frame: pd.DataFrame) -> None:
    """Write the rows, sorted; the same rows give the same bytes."""
    text = frame.sort_values(KEYS).to_csv(index=False, lineterminator="\n", float_format="%.6g")
    packed = io.BytesIO()
    with gzip.GzipFile(fileobj=packed, mode="wb", mtime=0) as file:
        file.write(text.encode())
    write_atomically(path, packed.getbuffer())


def make_table(frame: pd.DataFrame, metric: str) -> SearchTable:
    """Return the table of a metric, of the trials whose every fold was recorded."""
    column, unseen = f"val_{metric}", f"unseen_{metric}"
    if column not in frame or unseen not in frame:
        known = ", ".join(c.removeprefix("val_") for c in frame if str(c).startswith("val_"))
        raise UserError(f"metric '{metric}' was not recorded: known: {known}")
    trials = sorted(frame["trial"].unique())
    shape = (len(trials), int(frame["fold"].max()) + 1, int(frame["epoch"].max()))
    where = (
        np.searchsorted(trials, frame["trial"].to_numpy()),
        frame["fold"].to_numpy(),
        frame["epoch"].to_numpy() - 1,
    )
    filled = []
    for name in (column, "seconds", unseen):
        array = np.full(shape, np.nan)
        array[where] = frame[name].to_numpy(dtype=float)
        filled.append(array)
    values, seconds, last = filled
    first = frame.drop_duplicates("trial").sort_values("trial")
    params = tuple(json.loads(text) for text in first["params"])
    return SearchTable(metric, params, values, seconds, last[:, :, -1])
