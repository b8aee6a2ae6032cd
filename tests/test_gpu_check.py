"""The GPU check runs without a GPU and with torch alone, and fails for wrong results."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "gpu_check.py"
PRINT_LOADED = """
import atexit, sys
other = {"ray", "optuna", "mlflow", "pandas", "sklearn", "soundfile", "pydantic", "ruamel"}
atexit.register(lambda: print("loaded:", sorted(other & set(sys.modules))))
"""
PRINT_GRAPHS = """
import atexit
from torch._dynamo.utils import counters
atexit.register(lambda: print("graphs:", counters["stats"]["unique_graphs"]))
"""


def run_check(*args: str, before: str = "") -> subprocess.CompletedProcess[str]:
    code = f"{before}\nimport runpy, sys\nsys.path.insert(0, {str(SCRIPT.parent)!r})\n"
    code += f"sys.argv = ['gpu_check.py', *{list(args)!r}]\n"
    code += f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.thorough
@pytest.mark.skipif(torch.cuda.is_available(), reason="the output differs with a GPU")
def test_runs_without_a_gpu_and_with_torch_alone() -> None:
    done = run_check(
        "--recordings", "10", "--epochs", "1", "--packed", "0", "--fused", "2", before=PRINT_LOADED
    )
    assert done.returncode == 0, done.stderr
    assert "loaded: []" in done.stdout
    assert "CPU: no GPU was measured" in done.stdout
    assert re.search(r"one trial of 1 epochs, \w+: \d+\.\d\d s \(\d+\.\d per minute\)", done.stdout)
    assert re.search(r"the same steps on batches in memory: \d+\.\d\d s", done.stdout)
    assert re.search(
        r"the steps of 2 trials of one shape, float32: one by one \d+\.\d\d s, fused into one "
        r"network \d+\.\d\d s",
        done.stdout,
    )
    assert "GPU is busy" not in done.stdout  # printed for a GPU only


@pytest.mark.thorough
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compile_flag_compiles_the_network() -> None:
    args = ("--recordings", "10", "--epochs", "1", "--packed", "0", "--fused", "0", "--compile")
    done = run_check(*args, before=PRINT_GRAPHS)
    assert done.returncode == 0, done.stderr
    assert re.search(r"graphs: [1-9]", done.stdout)
    assert re.search(
        r"the steps of 1 epochs: \d+\.\d\d s, "
        r"compiled \d+\.\d\d s after a first epoch of \d+\.\d s",
        done.stdout,
    )


@pytest.mark.thorough
def test_wrong_results_of_the_device_fail() -> None:
    change_second_network = """
from resp_tune.training import loop
original = loop.Training.__init__
def changed(self, config, folds, device="cpu", calls=[]):
    calls.append(original(self, config, folds, device))
    if len(calls) == 2:
        next(iter(self.folds[0].network.parameters())).data.mul_(1.5)
loop.Training.__init__ = changed
"""
    args = ("--recordings", "10", "--epochs", "1", "--packed", "0", "--fused", "0")
    done = run_check(*args, before=change_second_network)
    assert done.returncode == 1, done.stderr
    assert "FAILED" in done.stdout
