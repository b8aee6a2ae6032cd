"""Read the public contract of a finished search and of the commands, as plain JSON values.

`PYTHONPATH=tests python -m support.contract STORAGE NAME` writes `tests/data/contract.json` from a
search.
"""

from __future__ import annotations

import csv
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import mlflow

COMMANDS = ("search", "train", "evaluate", "predict", "report", "synth", "ui")
SNAPSHOT = Path(__file__).parents[1] / "data" / "contract.json"


def flags() -> dict[str, dict[str, Any]]:
    """Map each command to its flags, and each flag to its default."""
    found = {}
    for name in COMMANDS:
        parser = importlib.import_module(f"resp_tune.{name}").parser()
        options = [a for a in parser._actions if a.dest != "help"]
        found[name] = {
            (a.option_strings[-1] if a.option_strings else a.dest): _plain(a.default)
            for a in options
        }
    return found


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, bool | int | float) else str(value)


def keys(value: Any, prefix: str = "") -> list[str]:
    """Dotted paths of all keys of a JSON value; `[]` stands for the items of a list."""
    if isinstance(value, dict):
        return sorted(
            p for k, v in value.items() for p in (f"{prefix}{k}", *keys(v, f"{prefix}{k}."))
        )
    if isinstance(value, list):
        return sorted({p for item in value for p in keys(item, f"{prefix.rstrip('.')}[].")})
    return []


def results(storage: Path, name: str) -> dict[str, Any]:
    """Return the file names, JSON keys, CSV headers and MLflow names of a finished search."""
    folder = storage / name
    tables = {}
    for path in sorted(folder.rglob("*.csv")):
        with path.open(newline="") as file:
            tables[str(path.relative_to(folder))] = next(csv.reader(file))
    client = mlflow.MlflowClient(f"sqlite:///{storage / 'mlflow.db'}")
    summary = json.loads((folder / "summary.json").read_text())
    runs = client.search_runs([summary["mlflow"]["experiment_id"]], max_results=1000)
    kinds: dict[str, dict[str, list[str]]] = {}
    for run in runs:
        kind = run.data.tags["resp_tune.kind"]
        tags = {t for t in run.data.tags if t.startswith("resp_tune.")}
        known = kinds.setdefault(kind, {"tags": [], "metrics": [], "params": []})
        known["tags"] = sorted({*known["tags"], *tags})
        known["metrics"] = sorted({*known["metrics"], *run.data.metrics})
        known["params"] = sorted({*known["params"], *run.data.params})
    split = json.loads((folder / "split.json").read_text())
    return {
        "files": sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()),
        "summary": keys(summary),
        "split": sorted(split),
        "winner_config": keys(json.loads((folder / "winner" / "config.json").read_text())),
        "tables": tables,
        "mlflow": kinds,
    }


if __name__ == "__main__":
    found = {"flags": flags(), **results(Path(sys.argv[1]), sys.argv[2])}
    SNAPSHOT.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")
