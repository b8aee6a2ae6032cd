"""Band statistics and the regression on them: what they are, what they hear, and what not."""

from __future__ import annotations

import dataclasses
from concurrent.futures import CancelledError
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.model_selection import StratifiedGroupKFold
from support.audits import imagined_statistics
from support.small_sets import imagined, write_set

from resp_tune.data.dataset import Dataset, load_dataset
from resp_tune.data.sounds.waveforms import load_waveform
from resp_tune.data.tasks import Clips, get_task, make_clips
from resp_tune.errors import RunError
from resp_tune.evaluation import band_statistics as module
from resp_tune.evaluation.band_statistics import (
    COUNT,
    FRONT_END,
    BandStatistics,
    band_statistics,
    load_band_statistics,
    select,
    statistics_key,
)
from resp_tune.evaluation.baselines import score_baselines
from resp_tune.features.logmel import join_frames, log_mels

RATE = 4000
SHORT = "0.0\t0.004\t0\t0\n0.2\t0.25\t1\t0\n0.5\t1.0\t0\t1\n"  # s; the first is within one frame


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESP_TUNE_CACHE", str(tmp_path / "cache"))


def noise(seconds: float, seed: int, low: float = 0.0, high: float = 2000.0) -> np.ndarray:
    """Noise between two frequencies in Hz."""
    spectrum = np.fft.rfft(np.random.default_rng(seed).normal(size=round(seconds * RATE)))
    hertz = np.fft.rfftfreq(round(seconds * RATE), 1 / RATE)
    samples: np.ndarray = np.fft.irfft(spectrum * ((low <= hertz) & (hertz < high)))
    return 0.5 * samples / np.abs(samples).max()


def two_bands(folder: Path) -> Dataset:
    """Twelve patients a class, one a band; all with one device, age and sex; lengths vary."""
    stems = {f"{100 + n}_1b1_Al_sc_Meditron": ("COPD", "Healthy")[n % 2] for n in range(24)}
    write_set(folder, stems)
    for n, stem in enumerate(stems):
        band = ((200.0, 500.0), (400.0, 700.0))[n % 2]
        sound = noise(1.0 + n % 3, n, *band) + 0.02 * noise(1.0 + n % 3, 50 + n)
        soundfile.write(folder / "audio_and_txt_files" / f"{stem}.wav", sound, RATE)
    return load_dataset(folder)


def frames(waveform: np.ndarray) -> np.ndarray:
    mels = log_mels(torch.from_numpy(waveform.astype(np.float32)), [FRONT_END])
    return join_frames(mels).values[:-1].float().numpy()


def test_against_a_plain_computation() -> None:
    x = frames(noise(1.5, 0))
    expected: list[float] = []
    bands = [list(map(float, x[:, band])) for band in range(x.shape[1])]
    expected += [sum(b) / len(b) for b in bands]
    expected += [(sum((v - sum(b) / len(b)) ** 2 for v in b) / len(b)) ** 0.5 for b in bands]
    for share in (0.1, 0.9):
        for b in bands:
            place = share * (len(b) - 1)
            low, part = int(place), place - int(place)
            in_order = sorted(b)
            expected.append(in_order[low] + part * (in_order[low + 1] - in_order[low]))
    for b in bands:
        changes = [abs(later - earlier) for earlier, later in pairwise(b)]
        expected.append(sum(changes) / len(changes))
    for lag in (2, 4, 8, 16, 32):
        for first in (0, 8, 16, 24):
            level = [sum(bands[first + i][t] for i in range(8)) / 8 for t in range(len(x))]
            squares = [(b - a) ** 2 for a, b in zip(level, level[lag:], strict=False)]
            expected.append((sum(squares) / len(squares)) ** 0.5)
    np.testing.assert_allclose(band_statistics(x), expected, rtol=1e-3, atol=1e-3)


def test_the_length_is_not_told() -> None:
    """A sound and the same sound twice differ far less than two sounds do."""
    sound = noise(10.0, 1) * (1.2 + np.sin(2 * np.pi * 0.5 * np.arange(10 * RATE) / RATE))
    once, twice = (band_statistics(frames(np.tile(sound, times))) for times in (1, 2))
    other = band_statistics(frames(noise(10.0, 2)))
    assert np.abs(twice - once).max() < 0.5  # dB
    assert np.abs(other - once).max() > 3


@pytest.mark.parametrize("length", [1, 2, 3, 33])
def test_few_frames_have_finite_statistics(length: int) -> None:
    found = band_statistics(frames(noise(1.0, 0))[:length])
    assert found.shape == (COUNT,)
    assert np.isfinite(found).all()
    flux_and_modulation = found[4 * FRONT_END.n_mels :]
    assert (flux_and_modulation == 0).all() == (length == 1)


def test_clips_have_the_frames_of_their_time(tmp_path: Path) -> None:
    write_set(tmp_path / "set", {"101_1b1_Al_sc_Meditron": "COPD"})
    (tmp_path / "set/audio_and_txt_files/101_1b1_Al_sc_Meditron.txt").write_text(SHORT)
    dataset = load_dataset(tmp_path / "set")
    recording = dataset.recordings[0]
    every = frames(load_waveform(recording.path, RATE).numpy())
    whole = load_band_statistics(dataset, "recording", 1)
    assert whole.keys() == {(recording.stem, 0.0, 1.0)}
    np.testing.assert_array_equal(whole[recording.stem, 0.0, 1.0], band_statistics(every))
    cycles = make_clips(get_task("cycles"), dataset).clips
    rows = select(load_band_statistics(dataset, "cycle", 1), cycles)
    rate = FRONT_END.sample_rate / FRONT_END.hop_length
    assert rows.shape == (3, COUNT)
    for row, c in zip(rows, cycles, strict=True):
        own = every[round(c.start * rate) : round(c.end * rate) + 1]
        np.testing.assert_array_equal(row, band_statistics(own))


def test_computed_once_for_a_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = load_dataset(
        write_set(tmp_path / "set", {f"{n}_1b1_Al_sc_M": "COPD" for n in (1, 2)})
    )
    found = load_band_statistics(dataset, "recording", 2)

    def reads(dataset: Dataset) -> int:
        """Load, compare with `found`, and return how many recordings were read."""
        read = []

        def load(path: Path, *rest: Any) -> torch.Tensor:
            read.append(path)
            return load_unchanged(path, *rest)

        monkeypatch.setattr(module, "load_unchanged", load)
        again = load_band_statistics(dataset, "recording", 2)
        assert again.keys() == found.keys()
        assert all((again[key] == row).all() for key, row in found.items())
        return len(read)

    load_unchanged = module.load_unchanged
    assert reads(dataset) == 0
    (kept,) = (tmp_path / "cache" / "baselines").iterdir()
    whole = kept.read_bytes()
    for damaged in (b"", whole[:-4], whole[:-4] + b"\xff\xff\xff\xff"):
        kept.write_bytes(damaged)
        assert reads(dataset) == 2
        assert kept.read_bytes() == whole
    other = dataclasses.replace(dataset.recordings[0], digest="0" * 64)
    changed = dataclasses.replace(dataset, recordings=(other, *dataset.recordings[1:]))
    assert statistics_key(changed, "recording") != statistics_key(dataset, "recording")
    with pytest.raises(RunError, match="has changed since this command began"):
        load_band_statistics(changed, "recording", 2)


def test_a_stopped_computation_keeps_nothing(tmp_path: Path) -> None:
    dataset = load_dataset(write_set(tmp_path / "set", {"1_1b1_Al_sc_M": "COPD"}))

    def stop() -> None:
        raise CancelledError

    with pytest.raises(CancelledError):
        load_band_statistics(dataset, "recording", 2, stop)
    assert not (tmp_path / "cache" / "baselines").exists()


def audio(clips: Clips, statistics: BandStatistics, seeds: int = 1) -> float:
    scores = score_baselines(clips, statistics, seeds=seeds, jobs=1)
    return float(scores["audio_linear"]["macro_f1"])


@pytest.fixture(autouse=True)
def _few_trees(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("resp_tune.evaluation.baselines.TREES", 2)


def test_bands_are_heard(tmp_path: Path) -> None:
    dataset = two_bands(tmp_path / "set")
    clips = make_clips(get_task("copd"), dataset)
    scores = score_baselines(clips, load_band_statistics(dataset, "recording", 2), seeds=1, jobs=1)
    assert scores["audio_linear"]["macro_f1"] > 0.9
    assert scores["all"]["macro_f1"] < 0.7
    assert audio(clips, imagined_statistics(dataset)) < 0.8


def patients(number: int, recordings: int) -> tuple[Clips, BandStatistics, np.ndarray]:
    """Recordings whose statistics say who the patient is, and a diagnosis by chance."""
    rng, locations = np.random.default_rng(0), ("Al", "Ar", "Pl", "Pr")
    sick = rng.random(number) < 0.4
    stems = [
        (f"{100 + n}_1b1_{locations[i]}_sc_M", "COPD" if sick[n] else "Healthy")
        for n in range(number)
        for i in range(1 + n % recordings)
    ]
    dataset = imagined(stems)
    who = {str(100 + n): rng.normal(size=COUNT) for n in range(number)}
    statistics = {
        (r.stem, 0.0, r.seconds): (who[r.patient] + 0.1 * rng.normal(size=COUNT)).astype(np.float32)
        for r in dataset.recordings
    }
    clips = make_clips(get_task("copd"), dataset)
    return clips, statistics, np.array([c.recording.patient for c in clips.clips])


def test_a_patient_is_in_one_fold() -> None:
    """By recording, statistics that tell the patient would tell the diagnosis."""
    clips, statistics, _ = patients(40, 4)
    assert audio(clips, statistics) < 0.65


def test_against_a_plain_loop() -> None:
    clips, statistics, patient = patients(20, 3)
    x, labels = select(statistics, clips.clips), np.array([c.label for c in clips.clips])
    scores = []
    for seed in (0, 1):
        predicted = labels.copy()
        folds = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
        for train, test in folds.split(x, labels, patient):
            own, who = labels[train], patient[train]
            weight = np.array([1 / (patient == p).sum() for p in who])
            for label in (0, 1):
                weight[own == label] /= weight[own == label].sum()
            weight *= len(set(who)) / 2
            mean = np.average(x[train], axis=0, weights=weight)
            sd = np.average((x[train] - mean) ** 2, axis=0, weights=weight) ** 0.5
            model = LogisticRegression(max_iter=2000)
            model.fit((x[train] - mean) / sd, own, sample_weight=weight)
            predicted[test] = model.predict((x[test] - mean) / sd)
        scores.append(f1_score(labels, predicted, average="macro"))
    assert audio(clips, statistics, seeds=2) == pytest.approx(np.mean(scores))


def test_one_class_in_training_is_predicted() -> None:
    """With two patients, each is predicted from the other's only class: always wrongly."""
    stems = [(f"{n}_1b1_{at}_sc_M", ("COPD", "Healthy")[n]) for n in (0, 1) for at in ("Al", "Ar")]
    dataset = imagined(stems)
    assert audio(make_clips(get_task("copd"), dataset), imagined_statistics(dataset)) == 0
