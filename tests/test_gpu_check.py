"""The GPU check runs where there is no GPU, on a host with torch alone, and can fail."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "gpu_check.py"
LOADED = """
import atexit, sys
absent = {"ray", "optuna", "mlflow", "pandas", "sklearn", "soundfile", "pydantic", "ruamel"}
atexit.register(lambda: print("loaded:", sorted(absent & set(sys.modules))))
"""


COMPILED = """
import atexit
from torch._dynamo.utils import counters
atexit.register(lambda: print("graphs:", counters["stats"]["unique_graphs"]))
"""


def check(*args: str, before: str = "") -> subprocess.CompletedProcess[str]:
    code = f"{before}\nimport runpy, sys\nsys.path.insert(0, {str(SCRIPT.parent)!r})\n"
    code += f"sys.argv = ['gpu_check.py', *{list(args)!r}]\n"
    code += f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what it says without a GPU")
def test_without_a_gpu_and_without_the_rest() -> None:
    done = check(
        "--recordings", "10", "--epochs", "1", "--packed", "0", "--fused", "2", before=LOADED
    )
    assert done.returncode == 0, done.stderr
    assert "loaded: []" in done.stdout
    assert "CPU: no GPU was measured" in done.stdout
    assert re.search(r"one trial of 1 epochs, \w+: \d+\.\d\d s \(\d+\.\d a minute\)", done.stdout)
    assert re.search(r"the same steps on batches in memory: \d+\.\d\d s", done.stdout)
    assert re.search(
        r"the steps of 2 trials of one shape, float32: one by one \d+\.\d\d s, fused into one "
        r"network \d+\.\d\d s",
        done.stdout,
    )
    assert "GPU is busy" not in done.stdout  # a figure that only a GPU has


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a C++ compiler")
def test_compiled() -> None:
    args = ("--recordings", "10", "--epochs", "1", "--packed", "0", "--fused", "0", "--compile")
    done = check(*args, before=COMPILED)
    assert done.returncode == 0, done.stderr
    assert re.search(r"graphs: [1-9]", done.stdout)
    assert re.search(
        r"the steps of 1 epochs: \d+\.\d\d s, "
        r"compiled \d+\.\d\d s after a first epoch of \d+\.\d s",
        done.stdout,
    )


def test_a_device_that_computes_something_else_fails() -> None:
    wrong = """
from resp_tune.training import loop as training
begin = training.Training.__init__
def begin_otherwise(self, config, folds, device="cpu", seen=[]):
    seen.append(begin(self, config, folds, device))
    if len(seen) == 2:
        next(iter(self.folds[0].network.parameters())).data.mul_(1.5)
training.Training.__init__ = begin_otherwise
"""
    done = check(
        "--recordings", "10", "--epochs", "1", "--packed", "0", "--fused", "0", before=wrong
    )
    assert done.returncode == 1, done.stderr
    assert "FAILED" in done.stdout
