"""The synthetic set: formats, determinism, who has what, and sounds that match annotations."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import soundfile
from scipy.ndimage import uniform_filter1d
from scipy.signal import butter, sosfiltfilt, welch
from scipy.stats import kurtosis
from sklearn.metrics import mutual_info_score, roc_auc_score

from resp_tune import synth
from resp_tune.cli import run
from resp_tune.data.dataset import Dataset, Recording, load_dataset
from resp_tune.data.synthetic import write
from resp_tune.data.synthetic.cohort import make_cohort, patients_of
from resp_tune.data.synthetic.profiles import ICBHI, SIX
from resp_tune.data.synthetic.sounds import crackle
from resp_tune.data.synthetic.write import SynthSettings, default_synthetic, make_synthetic
from resp_tune.data.tasks import get_task, make_clips
from resp_tune.errors import UserError
from resp_tune.evaluation import baselines
from resp_tune.evaluation.band_statistics import load_band_statistics
from resp_tune.evaluation.baselines import score_baselines

SMALL = SynthSettings(recordings=30, seconds=2.0, seed=3)


def _digest(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        total.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return total.hexdigest()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 recordings of 10 s."""
    folder = tmp_path_factory.mktemp("synthetic") / "made"
    make_synthetic(folder, SynthSettings(recordings=60, seed=1))
    return folder


@pytest.fixture(scope="module")
def loaded(made: Path) -> Dataset:
    return load_dataset(made)


def test_same_bytes_in_another_process_and_with_other_workers(tmp_path: Path) -> None:
    make_synthetic(tmp_path / "one", SMALL, workers=1)
    make_synthetic(tmp_path / "five", SMALL, workers=5)
    command = [sys.executable, "-m", "resp_tune.synth", str(tmp_path / "other")]
    flags = ["--recordings", "30", "--seconds", "2", "--seed", "3"]
    done = subprocess.run(
        command + flags,
        env={**os.environ, "PYTHONHASHSEED": "77"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == str(tmp_path / "other")
    digests = {_digest(tmp_path / name) for name in ("one", "five", "other")}
    assert len(digests) == 1
    make_synthetic(tmp_path / "seed", SynthSettings(recordings=30, seconds=2.0, seed=4))
    assert _digest(tmp_path / "seed") not in digests


def test_layout_is_the_real_one(made: Path) -> None:
    wavs = sorted((made / "audio_and_txt_files").glob("*.wav"))
    assert len(wavs) == 60
    assert {p.stem for p in wavs} == {p.stem for p in (made / "audio_and_txt_files").glob("*.txt")}
    diagnoses = (made / "patient_diagnosis.csv").read_bytes()
    assert diagnoses.count(b"\r\n") == diagnoses.count(b"\n") == 30 - 1
    assert not diagnoses.endswith(b"\n")
    people = (made / "demographic_info.txt").read_bytes()
    assert people.startswith(b"\r\n101 ")
    assert all(len(line.split(b" ")) == 6 for line in people.split(b"\r\n")[1:])
    official = (made / "ICBHI_challenge_train_test.txt").read_bytes().split(b"\r\n")
    assert official.pop() == b""
    assert [line.split(b"\t")[0].decode() for line in official] == [p.stem for p in wavs]
    assert "--recordings 60 --seconds 10 --seed 1" in (made / "SYNTHETIC.txt").read_text()


def test_sample_formats(made: Path) -> None:
    found: dict[str, set[tuple[int, str]]] = defaultdict(set)
    for path in (made / "audio_and_txt_files").glob("*.wav"):
        info = soundfile.info(path)
        assert info.channels == 1
        assert info.frames == 10 * info.samplerate
        found[path.stem.split("_")[-1]].add((info.samplerate, info.subtype))
    assert found == {
        "AKGC417L": {(44_100, "PCM_16"), (44_100, "PCM_24")},
        "LittC2SE": {(44_100, "PCM_16"), (44_100, "PCM_24")},
        "Litt3200": {(4_000, "PCM_16")},
        "Meditron": {(44_100, "PCM_16"), (44_100, "PCM_24"), (44_100, "PCM_32")},
    }


def test_loads_without_defects(loaded: Dataset) -> None:
    assert loaded.synthetic
    assert len(loaded.recordings) == 60
    assert len(loaded.problems) == 1  # the patient of whom nothing is known, as in the real set
    assert "no age and sex of 1 patient" in loaded.problems[0]
    assert all(r.cycles for r in loaded.recordings)
    split = defaultdict(set)
    for r in loaded.recordings:
        split[r.patient].add(r.official)
    assert all(len(side) == 1 for side in split.values())
    assert Counter(next(iter(s)) for s in split.values()) == {"train": 18, "test": 12}


@pytest.mark.parametrize("recordings", [30, 31, 119, 240, 1000])
def test_balanced_cohort(recordings: int) -> None:
    plans = make_cohort(SynthSettings(recordings=recordings))
    assert len({plan.stem for plan in plans}) == recordings
    patients = Counter(p.diagnosis for p in patients_of(plans))
    assert set(patients) == set(SIX)
    assert min(patients.values()) >= 5
    share = Counter(plan.patient.diagnosis for plan in plans)
    assert max(share.values()) - min(share.values()) <= 1
    train = Counter(p.diagnosis for p in patients_of(plans) if p.train)
    assert all(0 < train[name] < patients[name] for name in SIX)
    for plan in plans:  # a session has one device, and never a place twice
        assert plan.session_name[0] == str(plan.session + 1)
    sessions = defaultdict(set)
    for plan in plans:
        sessions[plan.patient.number, plan.session].add((plan.device, plan.session_name))
    assert all(len(names) == 1 for names in sessions.values())


def test_real_imbalance_is_copied() -> None:
    settings = SynthSettings(recordings=920, confound="icbhi", prevalence="icbhi")
    plans = make_cohort(settings)
    patients = Counter(p.diagnosis for p in patients_of(plans))
    assert patients == {name: real.patients for name, real in ICBHI.items()}
    table = Counter((plan.patient.diagnosis, plan.device) for plan in plans)
    for name, real in ICBHI.items():
        assert sum(table[name, device] for device in real.devices) == sum(real.devices.values())
        for device, count in real.devices.items():
            assert abs(table[name, device] - count) <= 2  # sessions are not divided
    few = make_cohort(SynthSettings(recordings=33, prevalence="icbhi"))
    assert Counter(p.diagnosis for p in patients_of(few))["COPD"] == 5


def test_device_tells_the_diagnosis_only_when_asked_to() -> None:
    def information(settings: SynthSettings) -> float:
        plans = make_cohort(settings)
        diagnoses = [plan.patient.diagnosis for plan in plans]
        return float(mutual_info_score(diagnoses, [plan.device for plan in plans]))

    for seed in range(5):
        assert information(SynthSettings(seed=seed)) < 0.15  # nats; chance alone gives about .03
        assert information(SynthSettings(seed=seed, confound="icbhi")) > 0.7


@pytest.mark.parametrize(("confound", "low", "high"), [("none", 0.0, 0.25), ("icbhi", 0.4, 0.6)])
def test_device_only_baseline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, confound: str, low: float, high: float
) -> None:
    monkeypatch.setattr(baselines, "TREES", 20)  # enough for a single column
    settings = SynthSettings(recordings=120, seconds=1.0, confound=confound)  # type: ignore[arg-type]
    make_synthetic(tmp_path / "set", settings)
    dataset = load_dataset(tmp_path / "set")
    clips = make_clips(get_task("diagnosis"), dataset)
    statistics = load_band_statistics(dataset, "recording", 1)
    scores = score_baselines(clips, statistics, seeds=1, jobs=1)
    assert low <= scores["device"]["balanced_accuracy"] <= high


def test_annotations_match_the_sound(loaded: Dataset) -> None:
    """Crackles are spikes and wheezes are spectral lines; the flags must say where they are."""
    spikes: list[float] = []
    lines: list[float] = []
    crackles: list[bool] = []
    wheezes: list[bool] = []
    for recording in loaded.recordings:
        wave, rate = soundfile.read(recording.path)
        band = sosfiltfilt(butter(4, [300, 1500], "band", fs=rate, output="sos"), wave)
        # Divided by its own level over .1 s, so that breathing in and out is no spike.
        even = band / np.sqrt(uniform_filter1d(band**2, rate // 10) + 1e-14)
        for cycle in recording.cycles:
            part = slice(round(cycle.start * rate), round(cycle.end * rate))
            spikes.append(float(kurtosis(even[part])))
            hertz, power = welch(wave[part], rate, nperseg=rate // 10)
            near = power[(hertz >= 90) & (hertz <= 1200)]
            smooth = np.exp(np.convolve(np.log(near), np.full(15, 1 / 15), "same"))
            lines.append(float((near / smooth)[7:-7].max()))
            crackles.append(cycle.crackle)
            wheezes.append(cycle.wheeze)
    assert 30 < sum(crackles) < len(crackles) - 30
    assert 30 < sum(wheezes) < len(wheezes) - 30
    assert roc_auc_score(crackles, spikes) > 0.85
    assert roc_auc_score(wheezes, lines) > 0.85


def _levels(recording: Recording, *bands: tuple[float, float]) -> list[float]:
    """Mean power in each band in dB; medians over time, so that knocks do not count."""
    wave, rate = soundfile.read(recording.path)
    hertz, power = welch(wave - wave.mean(), rate, nperseg=rate // 4, average="median")
    return [
        float(10 * np.log10(power[(hertz >= low) & (hertz < high)].mean())) for low, high in bands
    ]


def test_spectra(loaded: Dataset) -> None:
    """Heavy lows on the Meditron, little above the Litt3200's cut, breath falling with pitch."""
    falls = defaultdict(list)
    for recording in loaded.recordings:
        lows, body, mids, below, above = _levels(
            recording, (20, 60), (60, 300), (800, 1000), (1000, 1200), (1700, 1950)
        )
        falls[recording.device].append((lows - body, body - mids, below - above))
    median = {device: np.median(rows, axis=0) for device, rows in falls.items()}
    assert 10 <= median["Meditron"][0] <= 25
    assert all(rows[1] > 8 for rows in median.values())
    assert median["Litt3200"][2] > median["AKGC417L"][2] + 5


def test_simultaneous_files_hold_the_same_breaths(loaded: Dataset) -> None:
    sessions = defaultdict(list)
    for recording in loaded.recordings:
        sessions[recording.session, recording.mode].append(recording.cycles)
    pairs = dict.fromkeys(("mc", "sc"), 0)
    for (_, mode), cycles in sessions.items():
        if len(cycles) > 1:
            pairs[mode] += 1
            assert (cycles[0] == cycles[1]) == (mode == "mc")
    assert min(pairs.values()) > 0


@pytest.mark.parametrize(("idw", "two_cycles"), [(0.6e-3, 5e-3), (1.6e-3, 11e-3)])
def test_crackle_crosses_zero_at_its_initial_deflection(idw: float, two_cycles: float) -> None:
    rate = 1_000_000
    wave = crackle(rate, idw, two_cycles)
    assert wave.size == round(two_cycles * rate)
    inside = wave[2:-2]
    crossings = np.flatnonzero(np.diff(np.sign(inside))) + 2
    assert crossings[0] / rate == pytest.approx(idw, rel=0.01)
    assert len(crossings) == 3  # two cycles


def test_one_second_still_has_a_cycle(tmp_path: Path) -> None:
    make_synthetic(tmp_path / "short", SynthSettings(recordings=30, seconds=1.0))
    dataset = load_dataset(tmp_path / "short")
    assert all(r.cycles and r.cycles[-1].end <= 1.0 for r in dataset.recordings)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--recordings", "29"], "recordings 29 are too few for the 30 patients"),
        (["--recordings", "32", "--prevalence", "icbhi"], "too few for the 33 patients"),
        (["--recordings", "10001"], "is not a whole number from 1 to 10000"),
        (["--seconds", "0.5"], "seconds: 0.5 is outside 1 to 120"),
        (["--seconds", "nan"], "'nan' is not a number above 0"),
        (["--confound", "device"], "confound: 'device' is not one of none, icbhi"),
        (["--recordngs", "40"], "did you mean '--recordings'?"),
    ],
)
def test_wrong_flags(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], words: str
) -> None:
    assert run(synth.main, [str(tmp_path / "set"), *flags]) == 2
    shown = capsys.readouterr()
    assert words in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""
    assert list(tmp_path.iterdir()) == []


def test_refuses_what_is_not_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "kept.txt").write_text("mine")
    assert run(synth.main, [str(tmp_path), "--recordings", "30"]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert run(synth.main, [str(tmp_path / "kept.txt")]) == 2
    assert "is a file" in capsys.readouterr().err
    assert run(synth.main, [str(tmp_path / "kept.txt" / "below")]) == 2
    assert "cannot write to" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["kept.txt"]


def test_cut_off_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        assert total == 30
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_synthetic(tmp_path / "set", SMALL, stop)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "set").mkdir()  # an empty folder is as good as none
    make_synthetic(tmp_path / "set", SMALL)
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_default_set_is_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Path] = []

    def small(folder: Path, settings: SynthSettings) -> None:
        assert settings == SynthSettings()
        made.append(folder)
        make_synthetic(folder, SMALL)

    monkeypatch.setattr(write, "make_synthetic", small)
    with ThreadPoolExecutor(4) as pool:
        folders = set(pool.map(lambda _: default_synthetic(tmp_path), range(4)))
    assert folders == set(made)
    assert len(made) == 1
    assert made[0].is_relative_to(tmp_path / "synthetic")


@pytest.mark.parametrize("bad", [{"seconds": float("inf")}, {"seed": -1}, {"confound": "x"}])
def test_settings_are_checked(bad: dict[str, float]) -> None:
    with pytest.raises(UserError):
        SynthSettings(**bad)  # type: ignore[arg-type]
