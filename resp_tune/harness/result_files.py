"""Write the result files of a search; each can be rebuilt from its study."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import optuna
import pandas as pd

from resp_tune import __version__
from resp_tune.common.fault_points import fault_point
from resp_tune.common.paths import write_atomically
from resp_tune.common.trial_key import TrialKey
from resp_tune.data.split_spec import SplitSpec
from resp_tune.harness.failures import Failures
from resp_tune.space.search_space import SearchSpace
from resp_tune.study.replicates import replicates
from resp_tune.study.study import TrialRecord, records
from resp_tune.training.datamodule import DataModule

_STACK = ("torch", "torchaudio", "ray", "optuna", "mlflow", "numpy", "pandas", "scikit-learn")


def write_tables(
    folder: Path,
    study: optuna.Study,
    space: SearchSpace,
    run_ids: Mapping[TrialKey, str],
    failures: Failures,
) -> None:
    """Write `trials.csv`, `epochs.csv` and, if there are any, `replicates.csv`, from the study.

    `run_ids` are those of MLflow. A table that cannot be written is added to `failures`.
    """
    trials = records(study, space)
    rows = [_row(t, run_ids.get(t.key, ""), {}) | t.values for t in trials]
    epochs = pd.DataFrame([{"number": t.number, **row} for t in trials for row in t.epochs])
    if len(epochs):
        epochs["epoch"] = epochs["epoch"].astype(int)
    tables = {"trials.csv": pd.DataFrame(rows), "epochs.csv": epochs}
    if runs := replicates(study, trials):
        rows = [_row(r, run_ids.get(r.key, ""), {"index": r.key.replicate}) for r in runs]
        tables["replicates.csv"] = pd.DataFrame(rows)
    for name, table in tables.items():
        with failures.collected(f"{name} could not be written"):
            write_csv(folder / name, table)
        if name == "trials.csv":
            fault_point("trials-table")


def _row(run: TrialRecord, run_id: str, index: Mapping[str, int]) -> dict[str, Any]:
    return {
        "number": run.number,
        **index,
        "state": run.state,
        "score": run.score,
        "epochs": len(run.epochs),
        "seconds": round(run.seconds, 3),
        "seed": run.config.seed,
        "mlflow_run_id": run_id,
    }


def write_csv(path: Path, table: pd.DataFrame, *, digits: int | None = None) -> None:
    """Write a table as CSV atomically; numbers keep all their digits, or `digits` of them."""
    number_format = None if digits is None else f"%.{digits}g"
    text = table.to_csv(index=False, lineterminator="\n", float_format=number_format)
    write_atomically(path, text.encode())


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """Write `summary.json`; raise `ValueError` for NaN and infinity, which JSON lacks."""
    text = json.dumps(summary, indent=1, allow_nan=False, default=float)
    write_atomically(path, (text + "\n").encode())


def seconds_spent(trials: Sequence[TrialRecord], total: float) -> dict[str, float]:
    """Return the wall time, the time in epochs, and the mean overhead per trial, in seconds.

    `trials` include replicates.
    """
    training = sum(row["seconds"] for t in trials for row in t.epochs)
    overhead = sum(t.seconds for t in trials) - training
    return {
        "total": round(total, 3),
        "training": round(training, 3),
        "per_trial_overhead": round(overhead / max(len(trials), 1), 3),
    }


def model_details(
    datamodule: DataModule, spec: SplitSpec, data: str, provenance: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what a model's `config.json` holds beside its config; `data` names the data set."""
    task = datamodule.clips.task
    return {
        "task": task.name,
        **({"task_classes": task.grouping} if task.grouping else {}),
        "protocol": spec.protocol,
        "provenance": {
            **provenance,
            "data": data,
            "synthetic": datamodule.dataset.synthetic,
            **{name: value for name, value in spec.as_dict().items() if name != "protocol"},
            "split_sha256": datamodule.split.digest,
            "versions": versions(),
        },
    }


def versions() -> dict[str, str]:
    """Return the versions of Python, resp_tune and the libraries that results depend on."""
    stack = {name: version(name) for name in _STACK}
    return {"resp_tune": __version__, "python": platform.python_version(), **stack}
