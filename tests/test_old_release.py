"""What a search of release 0.1.0 left still opens, is reported, used and resumed.

`data/release-0.1.0/` is that search, of two trials, as its own code wrote it; its recordings are
made here, from whole numbers, so that they are the same bytes everywhere.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.fault_log import survived
from support.old_release import ARGS, OLD, make_recordings
from support.searches import command, search, study, summary, trials


@pytest.fixture
def place(tmp_path: Path) -> Path:
    shutil.copytree(OLD / "results", tmp_path / "r" / "old")
    make_recordings(tmp_path / "data")
    return tmp_path


@pytest.mark.slow
def test_it_is_resumed(place: Path) -> None:
    before = trials(place / "r", "old")
    data = ("--data", str(place / "data"))
    outcome = search(place / "r", *ARGS, *data, "--trials", "3")
    assert outcome.code == 0, outcome.err
    assert "resuming: 2 trials have ended already" in outcome.err
    after = trials(place / "r", "old")
    assert list(after["number"]) == [0, 1, 2]
    assert list(after["score"][:2]) == list(before["score"])
    assert list(after["lr"][:2]) == list(before["lr"])
    assert len(study(place / "r", "old").get_trials()) == 3
    first = json.loads((OLD / "results" / "summary.json").read_text())["test_readings"]
    assert summary(place / "r", "old")["test_readings"][:1] == first
    survived("results of release 0.1.0 resumed")


def test_it_is_reported_and_used(place: Path) -> None:
    told = command("report", "old", "--storage", str(place / "r"))
    assert told.code == 0, told.err
    assert (place / "r" / "old" / "report.html").stat().st_size > 10_000
    recording = next((place / "data").rglob("*.wav"))
    winner = str(place / "r" / "old" / "winner")
    found = command("predict", str(recording), "--winner", winner, "--json")
    assert found.code == 0, found.err
    assert json.loads(found.out)[0]["class"] in ("COPD", "Healthy")
    survived("results of release 0.1.0 reported and used")
