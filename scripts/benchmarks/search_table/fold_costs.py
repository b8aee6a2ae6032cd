"""What several folds cost and save, in real searches run one after the other."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from resp_tune.common.paths import write_atomically
from resp_tune.errors import RunError

ROOT = Path(__file__).resolve().parents[3]
SEARCHES: Mapping[str, tuple[str, ...]] = {
    "--folds 1": ("--folds", "1"),
    "--folds 4, together": ("--folds", "4", "--fold-order", "together"),
    "--folds 4, in sequence": ("--folds", "4", "--fold-order", "sequence"),
}


@dataclass(frozen=True)
class FoldCost:
    """A finished search: seconds of its command and of its epochs, and what it chose.

    `epochs` are those of a fold.
    """

    seconds: float
    training_seconds: float
    epochs: int
    states: Mapping[str, int]
    validation: float
    test: float
    price: float


def run_searches(storage: Path, flags: Sequence[str]) -> dict[str, FoldCost]:
    """Run the searches of `SEARCHES` with `flags`, below `storage`, and return what they cost."""
    return {
        name: _run(storage, f"folds-{n}", int(own[1]), [*own, *flags])
        for n, (name, own) in enumerate(SEARCHES.items())
    }


def _run(storage: Path, name: str, folds: int, flags: Sequence[str]) -> FoldCost:
    arguments = ["--storage", str(storage), "--name", name, *flags]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    begun = time.monotonic()
    done = subprocess.run(  # noqa: S603  # this interpreter, our own module
        [sys.executable, "-m", "resp_tune.search", *arguments],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        last = " / ".join(done.stderr.strip().splitlines()[-5:])
        raise RunError(f"the search '{name}' ended with exit code {done.returncode}: {last}")
    return read_cost(storage / name, folds, time.monotonic() - begun)


def read_cost(folder: Path, folds: int, seconds: float) -> FoldCost:
    """Return what the finished search in `folder` cost, of `folds`, in `seconds`."""
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_bytes())
    epochs, metric = pd.read_csv(folder / "epochs.csv"), summary["metric"]
    trained = len(epochs) * (1 if "fold" in epochs else folds)  # together: one row for all folds
    price = summary["winner"]["price_of_searching"]
    return FoldCost(
        seconds,
        float(epochs["seconds"].sum()),
        trained,
        {state: n for state, n in summary["trials"].items() if n},
        float(price["best_validation"]),
        float(summary["winner"]["test"][metric]),
        float(price["difference"]),
    )


def page(costs: Mapping[str, FoldCost], facts: Mapping[str, str]) -> str:
    """Return the Markdown page of the searches."""
    one = next(iter(costs.values()))
    lines = [
        "# What several folds cost",
        "",
        *(f"{name}: {text}  " for name, text in facts.items()),
        "",
        "`training`: seconds of all epochs, of which two are trained at a time, and as a multiple "
        "of one fold's; `epochs`: of a fold. `price`: the best validation score minus the winner's "
        "test score; one search "
        "says little about it, see SEARCH.md.",
        "",
        "| search | command, s | training, s | × | epochs | trials | best validation | test "
        "| price |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, cost in costs.items():
        states = ", ".join(f"{n} {state}" for state, n in cost.states.items())
        lines.append(
            f"| {name} | {cost.seconds:.0f} | {cost.training_seconds:.0f} | "
            f"{cost.training_seconds / one.training_seconds:.2f} | {cost.epochs} | {states} | "
            f"{cost.validation:.3f} | {cost.test:.3f} | {cost.price:.3f} |"
        )
    return "\n".join(lines) + "\n"


def write(folder: Path, text: str) -> None:
    """Write `FOLDS.md`."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "FOLDS.md", text.encode())
