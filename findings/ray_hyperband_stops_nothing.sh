#!/usr/bin/env bash
# One would guess: HyperBandScheduler with max_t=20 stops the worse trials of a search early, however
# many run at once. Seen: it gives its first bracket no halving. With as many trials at once as that
# bracket has places (4 for 20 epochs) it never opens another one, so all trials run to the end.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "ray[tune]==2.60.0"
cd "$folder"
RAY_DEDUP_LOGS=0 RAY_AIR_NEW_OUTPUT=0 "$folder/venv/bin/python" - 2>/dev/null <<'PY'
from pathlib import Path

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, HyperBandScheduler


def objective(config: dict) -> None:
    for epoch in range(1, 21):
        tune.report({"score": config["quality"] * epoch, "epoch": epoch})


def epochs_of(scheduler: object, at_once: int) -> list[int]:
    """Run 12 trials of known quality; return how many epochs each of them ran."""
    tuner = tune.Tuner(
        tune.with_resources(objective, {"cpu": 0.25}),
        param_space={"quality": tune.grid_search([float(q) for q in range(12)])},
        tune_config=tune.TuneConfig(
            scheduler=scheduler, metric="score", mode="max", max_concurrent_trials=at_once
        ),
        run_config=tune.RunConfig(verbose=0, storage_path=str(Path.cwd() / "results")),
    )
    return sorted(result.metrics["epoch"] for result in tuner.fit())


ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
print("ray", ray.__version__)
hyperband = epochs_of(HyperBandScheduler(time_attr="epoch", max_t=20), 4)
asha = epochs_of(ASHAScheduler(time_attr="epoch", max_t=20), 4)
print("epochs of 12 trials, 4 at once, HyperBandScheduler:", hyperband)
print("epochs of 12 trials, 4 at once, ASHAScheduler     :", asha)
assert set(hyperband) == {20}, "HyperBandScheduler stops trials now: this finding is out of date"
assert min(asha) < 20
PY
