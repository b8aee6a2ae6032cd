"""What a search of release 0.1.0 left is still opened, told, used and gone on with.

`data/release-0.1.0/` is that search, of two trials, as its own code wrote it; its recordings are
made here, from whole numbers, so that they are the same bytes everywhere.
"""

from __future__ import annotations

import array
import json
import shutil
import wave
from pathlib import Path

import pytest
from fault_log import survived
from searches import command, search, study, summary, trials

OLD = Path(__file__).parent / "data" / "release-0.1.0"
ARGS = (
    "--space", str(OLD / "space.yaml"), "--gpus", "0", "--scheduler", "none", "--epochs", "2",
    "--name", "old", "--cpus-per-trial", "1",
)  # fmt: skip


def make_recordings(root: Path) -> Path:
    """24 recordings of 12 patients, 2 s each, a sawtooth whose pitch tells the class a little."""
    audio = root / "audio_and_txt_files"
    audio.mkdir(parents=True)
    rows = []
    for patient in range(101, 113):
        diagnosis = "COPD" if patient % 2 else "Healthy"
        rows.append(f"{patient},{diagnosis}")
        for site in ("Al", "Ar"):
            stem = f"{patient}_1b1_{site}_sc_Meditron"
            step = 97 + 60 * (patient % 2) + patient % 7
            values = array.array("h", [(i * step * 31) % 40_009 - 20_004 for i in range(8000)])
            with wave.open(str(audio / f"{stem}.wav"), "wb") as file:
                file.setparams((1, 2, 4000, 0, "NONE", ""))
                file.writeframes(values.tobytes())
            (audio / f"{stem}.txt").write_text("0.0\t1.0\t0\t0\n1.0\t2.0\t1\t0\n")
    (root / "patient_diagnosis.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture
def place(tmp_path: Path) -> Path:
    shutil.copytree(OLD / "results", tmp_path / "r" / "old")
    make_recordings(tmp_path / "data")
    return tmp_path


@pytest.mark.slow
def test_it_goes_on(place: Path) -> None:
    before = trials(place / "r", "old")
    data = ("--data", str(place / "data"))
    outcome = search(place / "r", *ARGS, *data, "--trials", "3")
    assert outcome.code == 0, outcome.err
    assert "continuing: 2 trials have ended already" in outcome.err
    after = trials(place / "r", "old")
    assert list(after["number"]) == [0, 1, 2]
    assert list(after["score"][:2]) == list(before["score"])
    assert list(after["lr"][:2]) == list(before["lr"])
    assert len(study(place / "r", "old").get_trials()) == 3
    first = json.loads((OLD / "results" / "summary.json").read_text())["test_readings"]
    assert summary(place / "r", "old")["test_readings"][:1] == first
    survived("results of release 0.1.0 gone on with")


def test_it_is_told_and_used(place: Path) -> None:
    told = command("report", "old", "--storage", str(place / "r"))
    assert told.code == 0, told.err
    assert (place / "r" / "old" / "report.html").stat().st_size > 10_000
    recording = next((place / "data").rglob("*.wav"))
    winner = str(place / "r" / "old" / "winner")
    found = command("predict", str(recording), "--winner", winner, "--json")
    assert found.code == 0, found.err
    assert json.loads(found.out)[0]["class"] in ("COPD", "Healthy")
    survived("results of release 0.1.0 told and used")
