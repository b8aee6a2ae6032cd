"""Row E: the notebook's loop in a function trainable, as on the first page of Ray Tune's guide.

python -m benchmarks.plain_tune ITEMS.json CONFIGS.json EPOCHS CONCURRENCY STORAGE
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import ray
from ray import tune

from benchmarks import notebook


def trainable(config: dict[str, Any]) -> None:
    """Train as in row A and report every epoch."""
    items = json.loads(Path(config["items"]).read_text())
    settings = notebook.Settings(**config["settings"])
    for figures in notebook.train(
        items["train"], items["validation"], items["classes"], config["epochs"], settings
    ):
        tune.report(figures)


def main(items: str, configs: str, epochs: str, concurrency: str, storage: str) -> None:
    """Run every config; exit with 1 if a trial has failed."""
    ray.init(address="local", include_dashboard=False)
    tuner = tune.Tuner(
        trainable,
        param_space={
            "items": items,
            "epochs": int(epochs),
            "settings": tune.grid_search(json.loads(Path(configs).read_text())),
        },
        tune_config=tune.TuneConfig(
            metric="val_loss", mode="min", max_concurrent_trials=int(concurrency)
        ),
        run_config=tune.RunConfig(storage_path=storage, name="plain"),
    )
    results = tuner.fit()
    for error in results.errors:
        print(error, file=sys.stderr)
    print(results.get_best_result().metrics)
    ray.shutdown()
    sys.exit(1 if results.errors else 0)


if __name__ == "__main__":
    main(*sys.argv[1:])
