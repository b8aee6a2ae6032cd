"""slurm.sh, run on stand-ins for Slurm, Ray and the search: what it asks of each of them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ray.scripts import scripts as ray
from ray.scripts.symmetric_run import curate_and_validate_ray_start_args
from support.recipes import FOLDER, text

from resp_tune import search

# Runs its command once a node, as Slurm would, each with the node's own variables.
SRUN = """#!/usr/bin/env bash
echo "$@" > "$NOTES/srun"
while [[ $1 == --* ]]; do shift; done
for node in $(seq 0 $((SLURM_JOB_NUM_NODES - 1))); do
  SLURM_NODEID=$node SLURM_CPUS_ON_NODE=16 SLURM_GPUS_ON_NODE=$((4 - node)) "$@" || code=$?
done
exit ${code:-0}
"""

# Notes what it was given; on the first node, runs what stands behind `--`.
RAY = """#!{python}
import json, os, pathlib, subprocess, sys
node, notes = os.environ["SLURM_NODEID"], pathlib.Path(os.environ["NOTES"])
token = pathlib.Path(os.environ["RAY_AUTH_TOKEN_PATH"])
(notes / f"ray-{{node}}").write_text(json.dumps({{
    "arguments": sys.argv[1:], "mode": os.environ["RAY_AUTH_MODE"], "token": token.read_text(),
    "access": [oct(p.stat().st_mode & 0o777) for p in (token, token.parent)],
    "folder": os.environ["RAY_TMPDIR"], "there": os.path.isdir(os.environ["RAY_TMPDIR"]),
}}))
if node == "0" and os.environ["RAY_WORKS"] == "yes":
    subprocess.run(sys.argv[sys.argv.index("--") + 1:])
"""

PYTHON = """#!/usr/bin/env bash
[[ "$1 $2" == "-m resp_tune.search" ]] || exec {python} "$@"
shift 2
printf '%s\\n' "$@" > "$NOTES/search"
exit "$SEARCH_ENDS"
"""


class Job:
    """One run of the script; the notes that the stand-ins took."""

    def __init__(self, folder: Path, **environment: str) -> None:
        for name, body in {
            "bin/srun": SRUN,
            "bin/hostname": "#!/bin/sh\necho 10.0.0.5 192.168.0.5\n",
            "venv/bin/ray": RAY.format(python=sys.executable),
            "venv/bin/python": PYTHON.format(python=sys.executable),
        }.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(body, encoding="utf-8")
            path.chmod(0o755)
        self.notes, self.home = folder / "notes", folder / "home"
        self.notes.mkdir()
        self.home.mkdir()
        self.environment = {
            "PATH": f"{folder / 'bin'}:/usr/bin:/bin",
            "HOME": str(self.home),
            "NOTES": str(self.notes),
            "RESP_TUNE_VENV": str(folder / "venv"),
            "SLURM_JOB_ID": f"7{os.getpid()}",
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_CPUS_PER_TASK": "16",
            "SLURM_CPUS_ON_NODE": "16",
            "RAY_WORKS": "yes",
            "SEARCH_ENDS": "0",
            **environment,
        }

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", FOLDER / "slurm.sh", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def ray(self, node: int) -> dict[str, Any]:
        return dict(json.loads((self.notes / f"ray-{node}").read_text(encoding="utf-8")))


def test_two_nodes_one_search(tmp_path: Path) -> None:
    job = Job(tmp_path)
    done = job.run("--data", "/shared/my recordings", "--name", "first", "--trials", "3")
    assert done.returncode == 0, done.stderr

    # One task a node, with all of its CPUs, and the loss of one ends none of the others.
    srun = (job.notes / "srun").read_text(encoding="utf-8")
    assert srun.startswith("--ntasks-per-node=1 --cpus-per-task=16 --kill-on-bad-exit=0 ")

    for node in (0, 1):
        note = job.ray(node)
        command, *rest = note["arguments"]
        separator = rest.index("--")
        assert command == "symmetric-run"
        # Ray's own reading of them, and what is left is for `ray start`.
        start = curate_and_validate_ray_start_args(rest[:separator])
        assert start == ["--num-cpus", "16", "--num-gpus", str(4 - node)]
        ray.start.make_context("start", ["--head", *start])
        own = rest[:separator][: -len(start)]
        assert own == ["--address", "10.0.0.5:6379", "--min-nodes", "2"]
        assert note["there"]

    # The same arguments, one by one, with the cluster's address before them; the search takes them.
    arguments = (job.notes / "search").read_text(encoding="utf-8").splitlines()
    given = ["--data", "/shared/my recordings", "--name", "first", "--trials", "3"]
    assert arguments == ["--address", "10.0.0.5:6379", *given]
    search.parser().parse(arguments)


def test_the_token_is_a_private_file_and_goes_with_the_job(tmp_path: Path) -> None:
    job = Job(tmp_path)
    done = job.run("--name", "first")
    first, second = job.ray(0), job.ray(1)
    assert first["mode"] == second["mode"] == "token"
    assert re.fullmatch("[0-9a-f]{64}", first["token"])
    assert first["token"] == second["token"]
    assert first["access"] == ["0o600", "0o700"]
    shown = done.stdout + done.stderr + json.dumps([first["arguments"], second["arguments"]])
    assert first["token"] not in shown
    assert list(job.home.iterdir()) == []
    assert not Path(first["folder"]).exists()
    # Each job has its own.
    again = Job(tmp_path / "again")
    again.run("--name", "first")
    assert again.ray(0)["token"] != first["token"]


@pytest.mark.parametrize("code", [1, 2, 130])
def test_the_job_ends_as_the_search_did(code: int, tmp_path: Path) -> None:
    job = Job(tmp_path, SEARCH_ENDS=str(code))
    assert job.run("--name", "first").returncode == code
    # Ray's logs stay where something went wrong, the token does not.
    folder = Path(job.ray(0)["folder"])
    assert folder.is_dir()
    folder.rmdir()
    assert list(job.home.iterdir()) == []


def test_a_ray_that_does_not_start_is_a_failed_job(tmp_path: Path) -> None:
    """Symmetric-run itself ends with 0 there."""
    job = Job(tmp_path, RAY_WORKS="no")
    done = job.run("--name", "first")
    assert done.returncode == 1
    assert "the search was not started" in done.stderr
    assert not (job.notes / "search").exists()
    Path(job.ray(0)["folder"]).rmdir()


def test_another_address_and_folder(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    job = Job(tmp_path, RESP_TUNE_HEAD_IP="10.9.9.9", RESP_TUNE_SHARED=str(shared))
    assert job.run("--name", "first").returncode == 0
    assert job.ray(1)["arguments"][:3] == ["symmetric-run", "--address", "10.9.9.9:6379"]
    assert list(shared.iterdir()) == []


@pytest.mark.parametrize(
    ("without", "said"),
    [("SLURM_JOB_ID", "sbatch"), ("RESP_TUNE_VENV", "bash scripts/search --dry-run")],
)
def test_what_is_missing_is_said_in_one_line(without: str, said: str, tmp_path: Path) -> None:
    job = Job(tmp_path)
    del job.environment[without]
    done = subprocess.run(
        ["bash", FOLDER / "slurm.sh"],
        env=job.environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(job.notes.iterdir()) == []


def test_slurm_reads_the_settings() -> None:
    """`#SBATCH` lines behind the first command would be ignored."""
    lines = text("slurm.sh").splitlines()
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    settings = [i for i, line in enumerate(lines) if line.startswith("#SBATCH")]
    assert settings
    assert max(settings) < first
    asked = {lines[i].split()[1].split("=")[0] for i in settings}
    assert asked >= {"--nodes", "--ntasks-per-node", "--exclusive", "--requeue", "--time"}
    assert "#SBATCH --ntasks-per-node=1" in lines
