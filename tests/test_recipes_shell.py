"""Every shell script of the repository, by bash and by shellcheck."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.recipes import ROOT

# It follows `source`, beside the script and from the top of the checkout.
SHELLCHECK = [
    str(Path(sys.executable).parent / "shellcheck"),
    "--external-sources",
    "--source-path=SCRIPTDIR",
    f"--source-path={ROOT}",
]
SHELLS = (b"env bash\n", b"bash\n", b"sh\n")


def _scripts() -> list[str]:
    """What git has, or would have, that is a shell script by its name or its first line."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    return [name for name in listed if (ROOT / name).is_file() and _is_shell(ROOT / name)]


def _is_shell(path: Path) -> bool:
    with path.open("rb") as file:
        first = file.readline()
    return path.suffix == ".sh" or (first.startswith(b"#!") and first.split(b"/")[-1] in SHELLS)


def lint(script: Path) -> str:
    """What bash and shellcheck say of a script; it may source others beside it."""
    said = ""
    for check in (["bash", "-n"], SHELLCHECK):
        done = subprocess.run(
            [*check, script.name], cwd=script.parent, capture_output=True, text=True, check=False
        )
        said += done.stdout + done.stderr
    return said


def test_all_scripts_are_found() -> None:
    assert set(_scripts()) >= {
        ".ci/run",
        "scripts/search",
        "scripts/setup.sh",
        "scripts/test",
        "scripts/ui",
        "scripts/cluster/slurm.sh",
    }


@pytest.mark.parametrize("name", _scripts())
def test_scripts_are_clean(name: str) -> None:
    assert lint(ROOT / name) == ""


@pytest.mark.parametrize(
    ("body", "said"),
    [("if true; then\n", "syntax error"), ('rm -rf "$1"/*\n', "SC2115"), ("echo $1\n", "SC2086")],
)
def test_a_mistake_in_a_script_is_found(body: str, said: str, tmp_path: Path) -> None:
    script = tmp_path / "script.sh"
    script.write_text(f"#!/usr/bin/env bash\n{body}", encoding="utf-8")
    assert said in lint(script)
