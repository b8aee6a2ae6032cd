"""Rows E and F: whole searches, as commands, of the same trials two at a time."""

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

from benchmarks import ours
from benchmarks.workplace import PROTOCOL, TASK, Findings, Workplace
from resp_tune.common.yaml_files import read_yaml
from resp_tune.errors import RunError

ROWS = ("f_over_e",)
ROOT = Path(__file__).resolve().parents[2]
AT_ONCE = 2
SEARCHED = {"max_mask_pct": float, "n_mels": int, "dropout": float, "lr": float}
LINES_SHOWN = 5


def measure(place: Workplace) -> Findings:
    """F, then E with the trials that F chose, then F again."""
    sizes = place.sizes
    items = place.folder / "items.json"
    train, validation = place.items()
    classes = len(place.tables.classes)
    items.write_text(json.dumps({"train": train, "validation": validation, "classes": classes}))
    space = place.folder / "space.yaml"
    space.write_text(json.dumps(_space(place)))  # JSON is YAML
    ours_seconds = [_search(place, space, "f0")]
    plain_seconds = _plain(place, items, _configs(place.folder / "f0"))
    ours_seconds += [_search(place, space, f"f{n}") for n in range(1, sizes.search_repeats)]
    f = statistics.mean(ours_seconds)
    runs = " and ".join(f"{s:.0f}" for s in ours_seconds)
    return Findings(
        {"f_over_e": plain_seconds / f},
        {
            "f_over_e": f"wall time of whole processes: the same {sizes.search_trials} trials of "
            f"{sizes.search_epochs} epochs, {AT_ONCE} at a time, {len(train)} + {len(validation)} "
            f"recordings; E {plain_seconds:.0f} s, F {runs} s with a fresh cache"
        },
        {"e_seconds": plain_seconds, "f_seconds": ours_seconds},
    )


def _space(place: Workplace) -> dict[str, Any]:
    """The notebook's space, around the settings that row C uses."""
    space = read_yaml("space", ROOT / "search_spaces" / "notebook.yaml")
    plain = place.config(epochs=1)
    before, chosen = plain.as_dict(), ours.fast(plain).as_dict()
    return {**space, "fixed": {k: v for k, v in chosen.items() if v != before[k]}}


def _search(place: Workplace, space: Path, name: str) -> float:
    """Seconds of `resp_tune.search` in a storage and a cache of its own."""
    sizes = place.sizes
    flags = {
        "data": place.data,
        "task": TASK,
        "protocol": PROTOCOL,
        "space": space,
        "trials": sizes.search_trials,
        "epochs": sizes.search_epochs,
        "concurrency": AT_ONCE,
        "gpus": 0,
        "scheduler": "none",
        "sampler": "random",
        "storage": place.folder / name,
        "name": "search",
    }
    args = [f"--{flag}={value}" for flag, value in flags.items()]
    return _timed(
        ["resp_tune.search", *args], {"RESP_TUNE_CACHE": str(place.folder / f"cache-{name}")}
    )


def _plain(place: Workplace, items: Path, configs: list[dict[str, Any]]) -> float:
    """Seconds of the notebook's loop under Ray Tune, with the same configs."""
    path = place.folder / "configs.json"
    path.write_text(json.dumps(configs))
    sizes = place.sizes
    args = [str(items), str(path), str(sizes.search_epochs), str(AT_ONCE), str(place.folder / "e")]
    return _timed(["benchmarks.plain_tune", *args], {})


def _configs(storage: Path) -> list[dict[str, Any]]:
    """What each trial of a search varied, from its `trials.csv`."""
    with (storage / "search" / "trials.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [{name: kind(row[name]) for name, kind in SEARCHED.items()} for row in rows]


def _timed(module_and_args: list[str], env: Mapping[str, str]) -> float:
    """Wall time of `python -m` from start to exit; `RunError` when it fails."""
    paths = os.pathsep.join([str(ROOT / "scripts"), str(ROOT)])
    kept = {k: v for k, v in os.environ.items() if k not in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")}
    started = time.perf_counter()
    done = subprocess.run(  # noqa: S603  # this interpreter, our own modules
        [sys.executable, "-m", *module_and_args],
        env={**kept, "PYTHONPATH": paths, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        last = " / ".join(done.stderr.strip().splitlines()[-LINES_SHOWN:])
        raise RunError(f"{module_and_args[0]} ended with {done.returncode}: {last}")
    return seconds
