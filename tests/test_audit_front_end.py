"""What the last mel bands and the length show of the device, where they differ and where not."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from support.audits import few_trees
from support.small_sets import imagined, originals

from resp_tune.audit import front_end
from resp_tune.audit.front_end import front_end_giveaways, giveaway_warnings
from resp_tune.data.dataset import Dataset, load_dataset
from resp_tune.data.sounds.waveforms import resampler
from resp_tune.space.search_space import load_space

DEFAULT = load_space("default.yaml").front_ends()
FULL = tuple(dataclasses.replace(f, f_max=2000.0) for f in DEFAULT)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("RESP_TUNE_CACHE", str(tmp_path / "cache"))
    with few_trees():
        yield


def noise_set(folder: Path, *, resampled: bool, longer: bool = False) -> Dataset:
    """Return 20 patients with white noise; every other one is ill and recorded by the Litt3200.

    `resampled`: the others' noise comes from 44.1 kHz, by the resampler. `longer`: theirs is.
    """
    names = [(f"{100 + i}_1b1_Al_sc_{'Litt3200' if i % 2 else 'Meditron'}",
              "COPD" if i % 2 else "Healthy") for i in range(20)]  # fmt: skip
    made = []
    for i, recording in enumerate(imagined(names).recordings):
        seconds = 1.5 if longer and i % 2 == 0 else 1.0
        rate = 44_100 if resampled and i % 2 == 0 else 4000
        samples = np.random.default_rng(i).normal(0, 0.1, round(seconds * rate)).astype(np.float32)
        if rate != 4000:
            samples = resampler(rate, 4000, "hann")(torch.from_numpy(samples)).numpy()
        path = folder / f"{recording.stem}.wav"
        soundfile.write(path, samples / 2, 4000)
        made.append(dataclasses.replace(recording, path=path, samples=len(samples)))
    return Dataset(folder, tuple(made), (), True)


def test_bands_that_only_some_recordings_hold_predict_the_device(tmp_path: Path) -> None:
    found = front_end_giveaways(noise_set(tmp_path, resampled=True), FULL, workers=1)
    assert found["targets"]["device"]["classes"] == ("Litt3200", "Meditron")
    assert all(f["device"]["balanced_accuracy"] >= 0.9 for f in found["front_ends"])
    (line,) = giveaway_warnings(found)
    assert "up to 2000 Hz, alone predict the diagnosis" in line
    assert "(chance 0.500): a lower f_max" in line


def test_the_same_noise_from_one_rate_predicts_nothing(tmp_path: Path) -> None:
    found = front_end_giveaways(noise_set(tmp_path, resampled=False), DEFAULT[:2], workers=2)
    assert all(f["diagnosis"]["balanced_accuracy"] <= 0.8 for f in found["front_ends"])
    assert found["length"]["device"]["balanced_accuracy"] == 0.5
    assert [f["native_minus_resampled_db"] for f in found["front_ends"]] == [None, None]
    assert not any("length" in line for line in giveaway_warnings(found))


def test_the_length_alone_predicts_the_diagnosis(tmp_path: Path) -> None:
    found = front_end_giveaways(noise_set(tmp_path, resampled=False, longer=True), DEFAULT[:1], 1)
    assert found["length"]["diagnosis"] == {"balanced_accuracy": 1.0, "macro_f1": 1.0}
    assert any("the length alone predicts" in line for line in giveaway_warnings(found))


def test_the_result_is_kept_and_damaged_files_are_made_again(tmp_path: Path) -> None:
    dataset = noise_set(tmp_path, resampled=False)
    first = front_end_giveaways(dataset, DEFAULT[:1], 1)
    (kept,) = (tmp_path / "cache" / "baselines").glob("*.front_end.json")
    for damaged in ("{", "[]", '{"targets": {"device": {}}, "length": {}, "front_ends": [{}]}'):
        kept.write_text(damaged)
        again = front_end_giveaways(dataset, DEFAULT[:1], 1)
        assert again["front_ends"] == first["front_ends"]
    changed = dataset.recordings[0].path
    soundfile.write(changed, np.random.default_rng(99).normal(0, 0.1, 4000), 4000)
    front_end_giveaways(dataset, DEFAULT[:1], 1)
    assert len(list(kept.parent.glob("*.front_end.json"))) == 2


def test_too_few_patients(tmp_path: Path) -> None:
    whole = noise_set(tmp_path, resampled=False)
    found = front_end_giveaways(
        dataclasses.replace(whole, recordings=whole.recordings[:6]), DEFAULT[:1], 1
    )
    assert found["targets"] == {}
    assert giveaway_warnings(found) == []


def test_a_warning_needs_a_margin_and_two_standard_errors() -> None:
    rows = np.arange(4)
    few = front_end._Target(("a", "b"), (5, 5), rows, rows).describe()
    many = front_end._Target(("a", "b"), (500, 500), rows, rows).describe()
    assert few["warned_above"] == pytest.approx(0.5 + 2 * (0.05 + 0.05) ** 0.5 / 2)
    assert many["warned_above"] == pytest.approx(0.6)


def test_native_and_resampled_originals_look_the_same() -> None:
    """ICBHI has files at 4, 10 and 44.1 kHz."""
    dataset = load_dataset(originals())
    found = front_end_giveaways(dataset, (*DEFAULT, *FULL), workers=2)
    differences = [f["native_minus_resampled_db"] for f in found["front_ends"]]
    assert all(abs(d) < 0.3 for d in differences[: len(DEFAULT)]), differences
    assert all(abs(d) > 0.5 for d in differences[len(DEFAULT) :]), differences
