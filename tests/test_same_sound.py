"""One sound under several names: found, kept in one split, or left out where the labels differ."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import torchaudio
from support.small_sets import write_set

from resp_tune.audit.leaks import defects, protocol_leaks
from resp_tune.data.dataset import Dataset, load_dataset
from resp_tune.data.make_split import make_split
from resp_tune.data.sounds.inspection import inspect_recordings
from resp_tune.data.sounds.same_sound import copy_correlation, envelope, find_near_copies
from resp_tune.data.split_spec import SplitSpec
from resp_tune.data.tasks import get_task, make_clips

RATE = 4000


def lungs(seed: int, seconds: float = 12.0, rate: int = RATE) -> np.ndarray:
    """Noise that swells with a breath of about 3 s."""
    draw = np.random.default_rng(seed)
    count = round(seconds * rate)
    breath = 1 + np.sin(2 * np.pi * np.arange(count) / rate / draw.uniform(2.5, 3.5))
    low = np.convolve(draw.normal(0, 0.1, count), np.ones(4) / 4, mode="same")
    return (0.3 * breath * low).astype(np.float32)


def through(samples: np.ndarray, rate: int, container: str, subtype: str) -> np.ndarray:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=container, subtype=subtype)
    file.seek(0)
    return soundfile.read(file, dtype="float32")[0]


def at_rate(samples: np.ndarray, rate: int) -> np.ndarray:
    return torchaudio.functional.resample(torch.from_numpy(samples), RATE, rate).numpy()


SOUND = lungs(0)
COPIES: dict[str, tuple[np.ndarray, int]] = {
    "level": (SOUND / 30, RATE),
    "polarity": (-SOUND, RATE),
    "rate": (at_rate(SOUND, 44_100), 44_100),
    "shift": (SOUND[128:], RATE),
    "first half": (SOUND[: 6 * RATE], RATE),
    "middle half": (SOUND[3 * RATE : 9 * RATE], RATE),
    "MP3": (through(at_rate(SOUND, 8000), 8000, "MP3", "MPEG_LAYER_III"), 8000),
    "Vorbis": (through(at_rate(SOUND, 8000), 8000, "OGG", "VORBIS"), 8000),
    "ADPCM": (through(SOUND, RATE, "WAV", "IMA_ADPCM"), RATE),
    "noise": (SOUND + np.random.default_rng(9).normal(0, 0.1 * SOUND.std(), len(SOUND)), RATE),
    "offset": (SOUND + 0.2, RATE),
    "part of a minute": (np.concatenate([lungs(1, 30), SOUND, lungs(2, 20)]), RATE),
}


@pytest.mark.parametrize("kind", COPIES)
def test_altered_copies_are_found(kind: str) -> None:
    samples, rate = COPIES[kind]
    sounds = {"a": envelope(SOUND, RATE), "b": envelope(samples.astype(np.float32), rate)}
    ((one, other, value),) = find_near_copies(sounds, {"a": "101", "b": "102"}).pairs
    assert (one, other) == ("a", "b")
    assert 0.5 < value <= 1
    assert find_near_copies(sounds, {"a": "101", "b": "101"}).pairs == (), "of one patient"


def test_other_sounds_are_no_copies() -> None:
    sounds = {str(n): envelope(lungs(n, 3.1 + n % 5), RATE) for n in range(60)}
    sounds["short"] = envelope(SOUND[:RATE], RATE)
    sounds["short too"] = envelope(SOUND[:RATE], RATE)
    assert find_near_copies(sounds, {name: name for name in sounds}).pairs == ()
    assert copy_correlation(sounds["short"], sounds["short too"]) is None


def written(root: Path, sounds: dict[str, np.ndarray], diagnoses: dict[str, str]) -> Path:
    """A set of `sounds` by stem, and of the `diagnoses` of patients."""
    write_set(root, {stem: diagnoses[stem[:3]] for stem in sounds})
    for stem, samples in sounds.items():
        soundfile.write(root / "audio_and_txt_files" / f"{stem}.wav", samples, RATE)
    return root


def stem(patient: int, index: int = 1) -> str:
    return f"{patient}_1b{index}_Al_sc_Meditron"


def test_the_three_pairs_of_kauh(tmp_path: Path) -> None:
    """As KAUH describes them: 100 = 101 in two filters with one diagnosis, 76 = 77 with two.

    One recording under three filters belongs to one patient, which is no copy across patients.
    """
    b, d = lungs(5), np.convolve(lungs(5), [0.5, 0.5], mode="same").astype(np.float32)
    sounds = {
        stem(100, 1): b, stem(101, 1): b, stem(100, 2): d, stem(101, 2): d,
        stem(176): lungs(6), stem(177): lungs(6), stem(109, 1): lungs(7), stem(109, 2): lungs(8),
    }  # fmt: skip
    diagnoses = {"100": "Asthma", "101": "Asthma", "176": "COPD", "177": "Healthy", "109": "COPD"}
    dataset = load_dataset(written(tmp_path, sounds, diagnoses))
    assert {r.stem for r in dataset.recordings} == set(sounds) - {stem(176), stem(177)}
    assert {r.person for r in dataset.recordings} == {"100+101", "109"}
    left_out, shared = (line for line in dataset.problems if "same sound" in line)
    assert (
        f"2 recordings left out: the same sound has different diagnoses: {stem(176)} (COPD) = "
        in left_out
    )
    assert f"{stem(100, 1)} (Asthma) = {stem(101, 1)} (Asthma), equal files" in shared


def test_equal_samples_in_another_container_and_channel(tmp_path: Path) -> None:
    root = written(tmp_path, {stem(n): lungs(n) for n in (101, 102, 103, 104)},
                   dict.fromkeys(("101", "102", "103", "104"), "COPD"))  # fmt: skip
    audio = root / "audio_and_txt_files"
    samples, _ = soundfile.read(audio / f"{stem(101)}.wav", dtype="int16")
    (audio / f"{stem(102)}.wav").unlink()
    soundfile.write(audio / f"{stem(102)}.flac", samples, RATE)
    both = np.stack([0 * samples, samples], axis=1)
    soundfile.write(audio / f"{stem(103)}.wav", both, RATE)
    dataset = load_dataset(root)
    assert {r.person for r in dataset.recordings} == {"101+102+103", "104"}
    (line,) = (line for line in dataset.problems if "same sound" in line)
    assert line.count("equal samples") == 2


def test_copies_of_one_patient_are_named_and_kept(tmp_path: Path) -> None:
    sounds = {stem(101, 1): SOUND, stem(101, 2): SOUND, stem(102): lungs(3)}
    dataset = load_dataset(written(tmp_path, sounds, {"101": "COPD", "102": "COPD"}))
    assert len(dataset.recordings) == 3
    assert {r.session for r in dataset.recordings if r.patient == "101"} == {"101_1b1+101_1b2"}
    (line,) = (line for line in dataset.problems if "same sound" in line)
    assert "1 recording of the same sound as another of the same patient" in line


def test_different_cycles_of_one_sound_are_left_out(tmp_path: Path) -> None:
    sounds = {stem(101): SOUND, stem(102): SOUND, stem(103): SOUND, stem(104): lungs(3)}
    root = written(tmp_path, sounds, dict.fromkeys(("101", "102", "103", "104"), "COPD"))
    for name, crackle in ((stem(101), 0), (stem(102), 1), (stem(104), 1)):
        (root / "audio_and_txt_files" / f"{name}.txt").write_text(f"0.5\t2.5\t{crackle}\t0\n")
    (root / "audio_and_txt_files" / f"{stem(103)}.txt").unlink(missing_ok=True)
    dataset = load_dataset(root)
    assert [len(r.cycles) for r in dataset.recordings] == [0, 0, 0, 1]
    (line,) = (line for line in dataset.problems if "annotated differently" in line)
    assert line.startswith("the cycles of 2 recordings left out")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Twelve patients of two recordings and classes; three pairs of patients share a sound."""
    patients = range(101, 125)
    sounds = {stem(p, i): lungs(10 * p + i, 5) for p in patients for i in (1, 2)}
    for one, other in ((101, 103), (105, 107), (102, 104)):
        sounds[stem(other, 1)] = sounds[stem(one, 1)] * np.float32(0.3)
    diagnoses = {str(p): ("COPD", "Healthy")[p % 2] for p in patients}
    root = written(tmp_path_factory.mktemp("shared"), sounds, diagnoses)
    official = "".join(
        f"{s}\t{'train' if int(s[:3]) < 116 and s[:3] != '103' else 'test'}\n" for s in sounds
    )
    (root / "ICBHI_challenge_train_test.txt").write_text(official)
    return load_dataset(root)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("task", ["healthy-sick", "cycles"])
def test_patients_who_share_a_sound_are_in_one_split(shared: Dataset, task: str, seed: int) -> None:
    clips = make_clips(get_task(task), shared)
    split = make_split(shared, clips, SplitSpec(split_seed=seed, folds=4))
    person = {r.stem: r.person for r in shared.recordings}
    assert {"101+103", "105+107", "102+104"} <= set(person.values())
    for fold in split.folds:
        parts = [{person[s] for s in part} for part in (fold.train, fold.validation, split.test)]
        assert not parts[0] & parts[1]
        assert not parts[2] & (parts[0] | parts[1])
    assert split.leaks(shared).patients == 0


def test_a_copy_across_splits_is_a_leak(shared: Dataset) -> None:
    leaks = protocol_leaks(shared)
    assert leaks["patient"]["patients"] == 0
    assert (leaks["official"]["patients"], leaks["official"]["sessions"]) == (1, 1)
    assert leaks["official"]["without_shared_patients"]["patients"] == 0
    assert leaks["recording"]["patients"] > 0
    assert any("of the same sound as another patient's" in line for line in defects(shared))


def test_what_was_found_is_kept_in_the_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESP_TUNE_CACHE", str(tmp_path / "cache"))
    sounds = {stem(101): SOUND, stem(102): SOUND * np.float32(0.5), stem(103): 0 * SOUND}
    root = written(tmp_path / "set", sounds, dict.fromkeys(("101", "102", "103"), "COPD"))
    first = load_dataset(root)
    (kept,) = (tmp_path / "cache" / "sounds").iterdir()
    before = kept.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(
            "resp_tune.data.sounds.inspection.find_sound", None
        )  # nothing is decoded again
        assert load_dataset(root) == first
    kept.write_bytes(before[:100])
    assert load_dataset(root) == first
    assert json.loads(kept.read_bytes()) == json.loads(before)
    other = dict.fromkeys(root.glob("*/*.wav"), "101")
    assert inspect_recordings(other).near_copies.pairs == (), "of one patient there are none"


def test_a_cache_folder_that_cannot_be_written_costs_time_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RESP_TUNE_CACHE", str(tmp_path / "file"))
    root = written(tmp_path / "set", {stem(101): SOUND}, {"101": "COPD"})
    assert len(load_dataset(root).recordings) == 1
