"""The files of a finished search, each a projection of its study that can be made again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from resp_tune.common.paths import write_atomically
from resp_tune.study.study import STATES, TrialRecord

_STACK = ("torch", "torchaudio", "ray", "optuna", "mlflow", "numpy", "pandas", "scikit-learn")


def write_trials(path: Path, trials: Sequence[TrialRecord], run_ids: Mapping[int, str]) -> None:
    """`trials.csv`: one row a trial, after its fixed columns one for each searched field."""
    rows = [
        {
            "number": t.number,
            "state": t.state,
            "score": t.score,
            "epochs": len(t.epochs),
            "seconds": round(t.seconds, 3),
            "seed": t.config.seed,
            "mlflow_run_id": run_ids.get(t.number, ""),
            **t.values,
        }
        for t in trials
    ]
    write_csv(path, pd.DataFrame(rows))


def write_replicates(
    path: Path, replicates: Sequence[TrialRecord], run_ids: Mapping[tuple[int, int], str]
) -> None:
    """`replicates.csv`: one row a replicate; without any there is no file."""
    rows = [
        {
            "number": r.number,
            "index": r.replicate,
            "state": r.state,
            "score": r.score,
            "epochs": len(r.epochs),
            "seconds": round(r.seconds, 3),
            "seed": r.config.seed,
            "mlflow_run_id": run_ids.get((r.number, r.replicate), ""),
        }
        for r in replicates
    ]
    if rows:
        write_csv(path, pd.DataFrame(rows))


def write_epochs(path: Path, trials: Sequence[TrialRecord]) -> None:
    """`epochs.csv`: one row an epoch of each trial."""
    rows = [{"number": t.number, **row} for t in trials for row in t.epochs]
    frame = pd.DataFrame(rows)
    if len(frame):
        frame["epoch"] = frame["epoch"].astype(int)
    write_csv(path, frame)


def write_csv(path: Path, frame: pd.DataFrame, *, digits: int | None = None) -> None:
    """A table as CSV, whole or not at all; numbers with all their digits, or with `digits`."""
    shown = None if digits is None else f"%.{digits}g"
    text = frame.to_csv(index=False, lineterminator="\n", float_format=shown)
    write_atomically(path, text.encode())


def write_summary(path: Path, summary: Mapping[str, Any]) -> None:
    """`summary.json`; values that JSON does not have (NaN, infinity) are refused."""
    text = json.dumps(summary, indent=1, allow_nan=False, default=float)
    write_atomically(path, (text + "\n").encode())


def count_states(trials: Sequence[TrialRecord]) -> dict[str, int]:
    """Trials in each final state."""
    counts = Counter(t.state for t in trials)
    return {state: counts[state] for state in STATES}


def seconds_spent(trials: Sequence[TrialRecord], total: float) -> dict[str, float]:
    """Wall time in all, time in epochs, and what a trial took beside its epochs (mean).

    Replicates among `trials` count like them.
    """
    training = sum(row["seconds"] for t in trials for row in t.epochs)
    beside = [t.seconds - sum(row["seconds"] for row in t.epochs) for t in trials]
    return {
        "total": round(total, 3),
        "training": round(training, 3),
        "per_trial_overhead": round(sum(beside) / max(len(beside), 1), 3),
    }


def versions() -> dict[str, str]:
    """What this search ran with."""
    import platform

    import resp_tune

    stack = {name: version(name) for name in _STACK}
    return {"resp_tune": resp_tune.__version__, "python": platform.python_version(), **stack}
