"""The promised flags, files, JSON keys, CSV headers and MLflow names are those of release 0.1.

Names may be added. A name that goes, or a default that changes, breaks other people's scripts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.contract import COMMANDS, SNAPSHOT, flags, results
from support.inline import search_inline

from resp_tune.data.synthetic.settings import SynthSettings
from resp_tune.data.synthetic.write import make_synthetic

PROMISED: dict[str, Any] = json.loads(SNAPSHOT.read_text())


@pytest.mark.parametrize("command", COMMANDS)
def test_flags_and_their_defaults(command: str) -> None:
    now = flags()[command]
    assert {flag: now.get(flag, "gone") for flag in PROMISED["flags"][command]} == PROMISED[
        "flags"
    ][command]


def test_what_a_search_writes(tmp_path: Path) -> None:
    make_synthetic(tmp_path / "data", SynthSettings(seconds=2.0))
    arguments = ("--data", str(tmp_path / "data"), "--space", "search_spaces/smoke.yaml")
    arguments += ("--epochs", "1", "--gpus", "0", "--trials", "2", "--replicates", "2")
    outcome = search_inline(tmp_path, *arguments, "--name", "contract")
    assert outcome.code == 0, outcome.err
    now = results(tmp_path, "contract")
    for what in ("files", "summary", "split", "winner_config"):
        assert set(PROMISED[what]) - set(now[what]) == set(), what
    for table, header in PROMISED["tables"].items():
        assert now["tables"][table][: len(header)] == header, table
    for kind, names in PROMISED["mlflow"].items():
        for what, promised in names.items():
            assert set(promised) - set(now["mlflow"][kind][what]) == set(), (kind, what)
