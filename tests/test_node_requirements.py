"""What a node that joins a search in its middle is asked."""

from __future__ import annotations

import re
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from resp_tune.cluster import node_probe
from resp_tune.cluster.node_probe import NodeRequirements


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> NodeRequirements:
    monkeypatch.setattr(node_probe, "SHARED_SECONDS", 0.5)
    (tmp_path / "held").write_text("process 1 on driver")
    return NodeRequirements.of_driver(tmp_path / "held")


def test_a_machine_like_the_drivers(mine: NodeRequirements) -> None:
    assert mine.violation() is None
    assert replace(mine, file=None).violation() is None, "an object store is asked by every trial"


@pytest.mark.parametrize(
    ("name", "version", "said"),
    [
        ("torch", "1.0", r"torch \S+ \(here 1.0\)"),
        ("source", "0", "other code of resp_tune under the same version"),
    ],
)
def test_other_versions(name: str, version: str, said: str, mine: NodeRequirements) -> None:
    other = replace(mine, versions={**mine.versions, name: version})
    problem = other.violation()
    assert problem is not None
    assert f"node {socket.gethostname()} (" in problem
    assert re.search(said, problem)
    assert problem.endswith("rerun the same command to resume")


@pytest.mark.parametrize("content", [None, "process 1 on another driver"])
def test_a_storage_of_its_own(content: str | None, mine: NodeRequirements) -> None:
    assert mine.file is not None
    mine.file.unlink()
    if content is not None:
        mine.file.write_text(content)
    assert f"does not see the storage '{mine.file.parent}'" in str(mine.violation())


def test_a_folder_that_shows_it_late(
    mine: NodeRequirements, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mine.file is not None
    file, content = mine.file, mine.content
    file.unlink()
    monkeypatch.setattr(node_probe.time, "sleep", lambda _: file.write_text(content))
    assert mine.violation() is None
