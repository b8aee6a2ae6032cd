"""Packages with networks, installed into a folder that a test puts on its path."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "docs/examples/lung_networks"


def install_example(folder: Path) -> Path:
    """Install the package of docs/usage.md into `folder`, without asking an index."""
    source, site = folder / "source", folder / "site"
    shutil.copytree(EXAMPLE, source)  # building writes beside the sources
    given = ("--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--target", str(site))
    subprocess.run([sys.executable, "-m", "pip", "install", *given, str(source)], check=True)
    return site


def offer(
    patch: pytest.MonkeyPatch, folder: Path, code: str, name: str = "odd", package: str = "oddities"
) -> None:
    """Put a package 1.0 on the path whose module has `code` and offers its `make` as `name`."""
    module, site = package.replace("-", "_"), folder / package
    metadata = site / f"{module}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (site / f"{module}.py").write_text(code)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[resp_tune.networks]\n{name} = {module}:make\n")
    patch.delitem(sys.modules, module, raising=False)
    patch.syspath_prepend(str(site))
