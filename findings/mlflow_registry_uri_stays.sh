#!/usr/bin/env bash
# One would guess: what `mlflow.set_registry_uri(uri)` sets, `mlflow.set_registry_uri(None)` unsets,
# as with the tracking URI. Seen: the environment variable MLFLOW_REGISTRY_URI stays, so that this
# process and all that it starts look models up in the store of before.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check mlflow-skinny==3.17.2
cd "$folder"
unset MLFLOW_TRACKING_URI MLFLOW_REGISTRY_URI
"$folder/venv/bin/python" - <<'PY'
import os
import subprocess
import sys

import mlflow

print("mlflow", mlflow.__version__)
mlflow.set_tracking_uri("http://127.0.0.1:1")
mlflow.set_registry_uri("http://127.0.0.1:2")
mlflow.set_tracking_uri(None)
mlflow.set_registry_uri(None)
variables = {name: os.environ.get(name) for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")}
print("after both were set to None:", variables)
child = [sys.executable, "-c", "import mlflow; print(mlflow.get_registry_uri())"]
seen = subprocess.run(child, capture_output=True, text=True, check=True).stdout.strip()
print("this process looks models up at", mlflow.get_registry_uri(), "and its child at", seen)
assert variables["MLFLOW_TRACKING_URI"] is None
assert variables["MLFLOW_REGISTRY_URI"] == mlflow.get_registry_uri() == seen == "http://127.0.0.1:2", (
    "set_registry_uri(None) unsets the variable now: this finding is out of date"
)
PY
