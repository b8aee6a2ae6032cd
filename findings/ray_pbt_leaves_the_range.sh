#!/usr/bin/env bash
# One would guess: PopulationBasedTraining keeps a mutated hyperparameter within the range that
# hyperparam_mutations gives for it. Seen: explore multiplies by 1.2 or 0.8 and does not clip, so a
# dropout that was drawn from 0 to 0.5 leaves the range after a few perturbations.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check "ray[tune]==2.60.0"
"$folder/venv/bin/python" - <<'PY'
import random

import ray
from ray import tune
from ray.tune.schedulers.pbt import _explore

print("ray", ray.__version__)
space = {"dropout": tune.uniform(0.0, 0.5)}
largest = []
for seed in range(10):
    random.seed(seed)
    config = {"dropout": 0.45}
    values = []
    for _ in range(10):
        config = _explore(config, space, 0.0, (1.2, 0.8), None)[0]
        values.append(round(config["dropout"], 3))
    largest.append(max(values))
print("largest dropout, drawn from 0 to 0.5, in 10 perturbations, of 10 seeds:", largest)
assert max(largest) > 0.5, "explore clips now: this finding is out of date"
PY
