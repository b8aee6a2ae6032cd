"""What a search depends on changes or is damaged: noticed, named, rebuilt if it can be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from support.fault_log import survived
from support.gates import allow, gate_at, is_waiting
from support.inline import search_inline, start_inline
from support.searches import command, study, summary, trials, wait_for

pytestmark = pytest.mark.slow
ARGS = (
    "--space", "search_spaces/smoke.yaml", "--gpus", "0", "--scheduler", "none",
    "--epochs", "1", "--name", "kept",
)  # fmt: skip


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search of two trials in `r`, on the data set in `data`."""
    folder = tmp_path_factory.mktemp("begun")
    made = command("synth", str(folder / "data"), "--recordings", "40", "--seconds", "4")
    assert made.code == 0, made.err
    outcome = search_inline(folder / "r", *ARGS, "--trials", "2", "--data", str(folder / "data"))
    assert outcome.code == 0, outcome.err
    return folder


@pytest.fixture
def copy(begun: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(begun, tmp_path / "copy"))


IN_THE_WAY = (
    "study.db", "split.json", "recordings.json", "trials.csv", "report.html", "winner", "trials",
)  # fmt: skip


def searched(folder: Path) -> list[str]:
    """Stems of recordings that the search has read, by name."""
    return sorted(json.loads((folder / "r" / "kept" / "recordings.json").read_text()))


def rerun(folder: Path, *more: str, trial_count: int = 3) -> tuple[int, str]:
    """The same command with one more trial; its code, and its error line where there is one."""
    outcome = search_inline(
        folder / "r", *ARGS, "--trials", str(trial_count), "--data", str(folder / "data"), *more
    )  # fmt: skip
    errors = [line for line in outcome.err.splitlines() if line.startswith("error:")]
    assert "Traceback" not in outcome.err
    assert len(errors) == (outcome.code != 0)
    return outcome.code, "".join(errors) or outcome.err


def wav(folder: Path, stem: str) -> Path:
    return next((folder / "data").rglob(f"{stem}.wav"))


def test_a_changed_recording_is_named(copy: Path) -> None:
    stem = searched(copy)[0]
    path = wav(copy, stem)
    old = path.read_bytes()
    path.write_bytes(old[:-2] + bytes([old[-2] ^ 1, old[-1]]))
    code, said = rerun(copy)
    assert code == 2
    assert f"not the same audio: {stem}" in said
    assert len(study(copy / "r", "kept").get_trials()) == 2
    path.write_bytes(old)
    code, said = rerun(copy, trial_count=2)  # it is the same search again
    assert code == 0, said
    assert len(trials(copy / "r", "kept")) == 2
    survived("a recording changed between two commands")


def test_a_recording_that_is_gone_is_named(copy: Path) -> None:
    stem = searched(copy)[1]
    wav(copy, stem).unlink()
    for left in (copy / "data").rglob(f"{stem}.*"):
        left.unlink()
    code, said = rerun(copy)
    assert code == 2
    assert f"gone: {stem}" in said
    survived("a recording vanished between two commands")


def test_changed_labels_are_named(copy: Path) -> None:
    table = copy / "data" / "patient_diagnosis.csv"
    stem = searched(copy)[0]
    patient = stem.split("_")[0]
    lines = table.read_text().splitlines()
    old = next(line for line in lines if line.startswith(f"{patient},"))
    new = f"{patient},{'COPD' if 'COPD' not in old else 'Healthy'}"
    table.write_text("\n".join(new if line == old else line for line in lines) + "\n")
    code, said = rerun(copy)
    assert code == 2
    assert "split" in said or stem in said
    survived("labels changed between two commands")


def test_a_changed_test_split_is_another_access(copy: Path) -> None:
    """The search reads the test split at its end and not sooner."""
    (first,) = summary(copy / "r", "kept")["test_readings"]
    stem = json.loads((copy / "r" / "kept" / "split.json").read_text())["test"][0]
    path = wav(copy, stem)
    old = path.read_bytes()
    path.write_bytes(old[:-2] + bytes([old[-2] ^ 1, old[-1]]))
    for _ in range(2):  # the same files again are the same access again
        code, said = rerun(copy, trial_count=2)
        assert code == 0, said
        assert f"first evaluation (not the same audio: {stem}): this is another " in said
        accesses = summary(copy / "r", "kept")["test_readings"]
        assert [r["weights_sha256"] for r in accesses] == [first["weights_sha256"]] * 2
        assert accesses[0] == first
        assert accesses[1]["recordings_sha256"] != first["recordings_sha256"]
    path.write_bytes(old)
    code, said = rerun(copy, trial_count=2)
    assert code == 0, said
    assert "another test-set access" not in said
    assert summary(copy / "r", "kept")["test_readings"] == accesses
    survived("a recording of the test split changed after it was read")


def test_a_recording_that_changes_while_it_is_read(copy: Path, tmp_path: Path) -> None:
    stem = searched(copy)[0]
    env = {**gate_at(tmp_path, f"waveform-read/{stem}"), "RESP_TUNE_CACHE": str(tmp_path / "cache")}
    args = (*ARGS[:-1], "fresh", "--trials", "3", "--data", str(copy / "data"))
    running = start_inline(copy / "r", *args, env=env, err=tmp_path / "err")
    wait_for(lambda: is_waiting(tmp_path, "waveform-read"))  # it has decoded the old content
    content = wav(copy, stem).read_bytes()
    wav(copy, stem).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    allow(tmp_path)
    assert running.wait(300) == 1
    said = (tmp_path / "err").read_text()
    assert "Traceback" not in said
    assert f"{stem}.wav' has changed since this command began" in said
    assert not list((tmp_path / "cache" / "features").glob("*/frames.f16")), "nothing mixed is kept"
    survived("a recording changed while it was read")


def test_files_that_follow_from_the_study_are_made_again(copy: Path) -> None:
    before = summary(copy / "r", "kept")
    folder = copy / "r" / "kept"
    paths = [folder / n for n in ("trials.csv", "summary.json", "epochs.csv", "report.html")]
    for path in paths:
        path.write_bytes(b"\x00 not what it was")
    code, said = rerun(copy, trial_count=2)
    assert code == 0, said
    assert not [path for path in paths if b"\x00" in path.read_bytes()]
    after = summary(copy / "r", "kept")
    assert after["trials"] == before["trials"]
    assert after["winner"] == before["winner"]
    assert after["test_readings"] == before["test_readings"]
    survived("trials.csv, summary.json, epochs.csv, report.html damaged", times=len(paths))


@pytest.mark.parametrize("damage", ["cut", "noise", "empty"])
def test_a_damaged_study_is_named(damage: str, copy: Path) -> None:
    path = copy / "r" / "kept" / "study.db"
    whole = path.read_bytes()
    damaged = {
        "cut": whole[: len(whole) // 2],
        "noise": whole[:100] + b"\xa5" * (len(whole) - 100),
        "empty": b"",
    }
    path.write_bytes(damaged[damage])
    code, said = rerun(copy)
    assert code in (1, 2)
    assert "study.db'" in said
    assert "restore it from a copy, or " in said
    assert "SELECT" not in said
    assert path.read_bytes() == damaged[damage], "what is left of it stays"
    survived("study.db damaged, named")


@pytest.mark.parametrize("name", IN_THE_WAY)
def test_a_folder_in_the_place_of_a_file_is_named(name: str, copy: Path) -> None:
    path = copy / "r" / "kept" / name
    aside, was_folder = path.rename(copy / name), (copy / name).is_dir()
    if was_folder:
        path.write_text("a note\n")
    else:
        path.mkdir()
    code, said = rerun(copy)
    assert code in (1, 2), said
    assert f"/kept/{name}" in said
    assert "move " in said or name == "trials"
    (path.unlink if was_folder else path.rmdir)()
    aside.rename(path)
    code, said = rerun(copy)
    assert code == 0, said
    assert list(trials(copy / "r", "kept")["state"]) == ["finished"] * 3
    survived("a folder in the place of a file, or the reverse")


def test_a_damaged_split_is_written_again(copy: Path) -> None:
    path = copy / "r" / "kept" / "split.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    code, said = rerun(copy, trial_count=2)
    assert code == 0, said
    assert "split.json' was damaged and is written again" in said
    assert path.read_bytes() == whole
    survived("split.json damaged, made again")
