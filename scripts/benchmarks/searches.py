"""Rows E and F: whole searches, run as commands, of the same trials, two at a time."""

from __future__ import annotations

import csv
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.resp_tune_training import fast
from benchmarks.workspace import PROTOCOL, TASK, Measurement, Workspace
from resp_tune.common.yaml_files import read_yaml
from resp_tune.errors import RunError

ROWS = ("f_over_e",)
ROOT = Path(__file__).resolve().parents[2]
CONCURRENCY = 2
SEARCHED = {"max_mask_pct": float, "n_mels": int, "dropout": float, "lr": float}
ERROR_LINES = 5


def measure(workspace: Workspace) -> Measurement:
    """Run F, then E with the configs that F has chosen, then F again."""
    sizes, folder = workspace.sizes, workspace.folder
    items = folder / "items.json"
    train, validation = workspace.items()
    classes = len(workspace.tables.classes)
    items.write_text(json.dumps({"train": train, "validation": validation, "classes": classes}))
    space = folder / "space.yaml"
    space.write_text(json.dumps(_space(workspace)))  # JSON is YAML
    f_seconds = [_run_search(workspace, space, "f0")]
    e_seconds = _run_plain_tune(workspace, items, _read_configs(folder / "f0"))
    f_seconds += [_run_search(workspace, space, f"f{n}") for n in range(1, sizes.search_repeats)]
    f_text = " and ".join(f"{seconds:.0f}" for seconds in f_seconds)
    return Measurement(
        {"f_over_e": e_seconds / statistics.mean(f_seconds)},
        {
            "f_over_e": f"wall time of whole processes: the same {sizes.search_trials} trials of "
            f"{sizes.search_epochs} epochs, {CONCURRENCY} at a time, {len(train)} + "
            f"{len(validation)} recordings; E {e_seconds:.0f} s, F {f_text} s with an empty cache"
        },
        {"e_seconds": e_seconds, "f_seconds": f_seconds},
    )


def _space(workspace: Workspace) -> dict[str, Any]:
    """Return the notebook's space with the settings of row C fixed."""
    space = read_yaml("space", ROOT / "search_spaces" / "notebook.yaml")
    config = workspace.config(epochs=1)
    before, chosen = config.as_dict(), fast(config).as_dict()
    return {**space, "fixed": {k: v for k, v in chosen.items() if v != before[k]}}


def _run_search(workspace: Workspace, space: Path, name: str) -> float:
    """Return the seconds of `resp_tune.search` with its own storage and cache."""
    sizes = workspace.sizes
    flags = {
        "data": workspace.data,
        "task": TASK,
        "protocol": PROTOCOL,
        "space": space,
        "trials": sizes.search_trials,
        "epochs": sizes.search_epochs,
        "concurrency": CONCURRENCY,
        "gpus": 0,
        "scheduler": "none",
        "sampler": "random",
        "storage": workspace.folder / name,
        "name": "search",
    }
    args = [f"--{flag}={value}" for flag, value in flags.items()]
    cache = str(workspace.folder / f"cache-{name}")
    return _time_module(["resp_tune.search", *args], {"RESP_TUNE_CACHE": cache})


def _run_plain_tune(workspace: Workspace, items: Path, configs: list[dict[str, Any]]) -> float:
    """Return the seconds of the notebook's loop under Ray Tune with the same configs."""
    path = workspace.folder / "configs.json"
    path.write_text(json.dumps(configs))
    epochs, storage = str(workspace.sizes.search_epochs), str(workspace.folder / "e")
    args = [str(items), str(path), epochs, str(CONCURRENCY), storage]
    return _time_module(["benchmarks.plain_tune", *args], {})


def _read_configs(storage: Path) -> list[dict[str, Any]]:
    """Return the searched settings of each trial, from the search's `trials.csv`."""
    with (storage / "search" / "trials.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [{name: kind(row[name]) for name, kind in SEARCHED.items()} for row in rows]


def _time_module(module_and_args: list[str], env: Mapping[str, str]) -> float:
    """Return the wall time of `python -m` in seconds; raise `RunError` if it fails."""
    paths = os.pathsep.join([str(ROOT / "scripts"), str(ROOT)])
    ignored = ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")
    inherited = {name: value for name, value in os.environ.items() if name not in ignored}
    started = time.perf_counter()
    done = subprocess.run(  # noqa: S603  # this interpreter, our own modules
        [sys.executable, "-m", *module_and_args],
        env={**inherited, "PYTHONPATH": paths, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        last = " / ".join(done.stderr.strip().splitlines()[-ERROR_LINES:])
        raise RunError(f"{module_and_args[0]} ended with exit code {done.returncode}: {last}")
    return seconds
