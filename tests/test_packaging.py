"""A wheel holds everything that a search needs, and runs it from a folder without the checkout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_smoke_search_runs_from_a_wheel(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(tmp_path / "dist"), "."]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True, timeout=300)
    (wheel,) = (tmp_path / "dist").glob("resp_tune-*.whl")
    folder = tmp_path / "venv"
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)]
    subprocess.run(install, check=True, capture_output=True, timeout=120)
    # Dependencies are those of the environment that runs the tests. A path in a .pth file comes
    # after the new environment's own, and .pth files below it are not read, so the editable
    # installation of the checkout is not found.
    own = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    (Path(own) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    where = [str(python), "-c", "import resp_tune; print(resp_tune.__file__)"]
    found = subprocess.run(where, cwd=elsewhere, check=True, capture_output=True, text=True)
    assert found.stdout.startswith(str(folder))
    arguments = "--space search_spaces/smoke.yaml --trials 2 --epochs 1 --gpus 0 --name wheel"
    done = subprocess.run(
        [str(folder / "bin" / "resp-tune"), "search", *arguments.split()],
        cwd=elsewhere,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(Path(elsewhere, done.stdout.strip().splitlines()[-1]).read_text())
    assert summary["trials"]["finished"] == 2
    assert (elsewhere / "results" / "wheel" / "report.html").is_file()
