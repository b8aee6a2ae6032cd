#!/usr/bin/env bash
# One would guess: a suggestion of GPSampler uses one thread, since its documentation says that it
# avoids oversubscription "automatically by limiting PyTorch intra-op threads to 1, and, on SciPy
# v1.15+, also limiting OPENBLAS_NUM_THREADS to 1". Seen: it sets that variable when OpenBLAS has long
# been loaded, which no longer reads it and keeps all its threads. On two cores a suggestion takes
# three to six times the CPU time that it takes within threadpoolctl.threadpool_limits(1).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check optuna==5.0.0 scipy==1.17.1 \
  numpy==2.4.6 torch==2.14.1 greenlet==3.5.6 threadpoolctl==3.8.0
"$folder/venv/bin/python" - <<'PY'
import os
import threading
import time
import warnings
from contextlib import nullcontext

import numpy
import optuna
import scipy
import torch
from threadpoolctl import threadpool_info, threadpool_limits

optuna.logging.set_verbosity(optuna.logging.ERROR)
warnings.simplefilter("ignore")
seen: set[tuple[str, int]] = set()
done = threading.Event()


def watch() -> None:
    """Note how many threads OpenBLAS has whenever the variable says one."""
    while not done.wait(0.005):
        if os.environ.get("OPENBLAS_NUM_THREADS") == "1":
            seen.update(
                (pool["internal_api"], pool["num_threads"])
                for pool in threadpool_info()
                if pool["internal_api"] == "openblas"
            )


def cpu_seconds(limited: bool) -> float:
    """Return the CPU time of 6 suggestions from the model of 10 parameters."""
    study = optuna.create_study(sampler=optuna.samplers.GPSampler(seed=0))
    space = {f"x{i}": optuna.distributions.FloatDistribution(0, 1) for i in range(10)}
    used = 0.0
    for number in range(16):
        before = time.process_time()
        with threadpool_limits(limits=1) if limited else nullcontext():
            trial = study.ask(space)
        used += time.process_time() - before if number >= 10 else 0.0
        study.tell(trial, sum((x - 0.3) ** 2 for x in trial.params.values()))
    return used


print("optuna", optuna.__version__, "numpy", numpy.__version__, "scipy", scipy.__version__,
      "torch", torch.__version__, "cores", os.cpu_count())
plain, limited = cpu_seconds(False), cpu_seconds(True)
watcher = threading.Thread(target=watch)
watcher.start()
cpu_seconds(False)
done.set()
watcher.join()
print(f"CPU time of 6 suggestions: {plain:.1f} s, with one thread for all libraries {limited:.1f} s")
print("while OPENBLAS_NUM_THREADS is 1:", sorted(seen))
assert seen, "GPSampler no longer sets OPENBLAS_NUM_THREADS: this finding is out of date"
if os.cpu_count() > 1:
    assert max(threads for _, threads in seen) > 1, "OpenBLAS now has one thread: out of date"
PY
