"""Shortcuts: found where device or age give the diagnosis away, and not where they do not."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from sklearn.metrics import roc_auc_score
from support.audits import few_trees, in_memory, of_devices

from resp_tune.audit.shortcuts import age_shortcut, device_shortcut
from resp_tune.data.synthetic.settings import SynthSettings


@pytest.fixture(scope="module", autouse=True)
def _few_permutations() -> Iterator[None]:
    with few_trees():
        yield


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("recordings", "prevalence"), [(36, "balanced"), (150, "icbhi")])
def test_shortcuts_of_synthetic_sets(seed: int, recordings: int, prevalence: Any) -> None:
    for confound in ("icbhi", "none"):
        dataset = in_memory(SynthSettings(recordings, 1.0, seed, confound, prevalence))
        for found in device_shortcut(dataset), age_shortcut(dataset):
            assert found is not None
            assert found["found"] == (found["warning"] is not None) == (confound == "icbhi")


def test_the_best_guess_by_device() -> None:
    """Four in five COPD patients on one device, all Healthy on another: (0.8 + 0.2 + 1) / 2."""
    rows = [("COPD", "Litt3200")] * 16 + [("COPD", "AKGC417L")] * 4 + [("Healthy", "Meditron")] * 20
    found = device_shortcut(of_devices(rows))
    assert found is not None
    assert found["value"] == pytest.approx(1.0)
    assert found["found"]
    assert found["patients"] == 40
    mixed = [(name, d) for name in ("COPD", "Healthy") for d in ("Litt3200", "Meditron") * 5]
    even = device_shortcut(of_devices(mixed))
    assert even is not None
    assert even["value"] == pytest.approx(0.5)
    assert even["p_value"] == 1
    assert not even["found"]


def test_a_device_shortcut_against_a_plain_loop() -> None:
    dataset = in_memory(SynthSettings(120, 1.0, 7))
    found = device_shortcut(dataset)
    assert found is not None
    used: dict[str, list[str]] = {}
    diagnosis = {r.patient: r.diagnosis for r in dataset.recordings}
    for r in dataset.recordings:
        used.setdefault(r.patient, []).append(r.device)
    low, high = 0.0, 0.0
    for device in {r.device for r in dataset.recordings}:
        sure = [p for p in used if used[p].count(device) * 2 > len(used[p])]
        perhaps = [p for p in used if used[p].count(device) * 2 >= len(used[p])]
        for patients, name in ((sure, "low"), (perhaps, "high")):
            shares = [
                sum(diagnosis[p] == c for p in patients) / sum(d == c for d in diagnosis.values())
                for c in set(diagnosis.values())
            ]
            if name == "low":
                low += max(shares) / 6
            else:
                high += max(shares) / 6
    assert low <= found["value"] <= high


def test_one_device_is_no_shortcut() -> None:
    rows = [("COPD", "Meditron")] * 6 + [("Healthy", "Meditron")] * 6
    found = device_shortcut(of_devices(rows))
    assert found is not None
    assert (found["value"], found["p_value"], found["found"]) == (0.5, 1.0, False)


def test_too_few_patients_for_a_shortcut() -> None:
    assert (
        device_shortcut(of_devices([("COPD", "Litt3200")] * 4 + [("URTI", "Meditron")] * 9)) is None
    )
    assert age_shortcut(of_devices([("COPD", "Litt3200")] * 9)) is None


def test_the_area_of_age_is_that_of_sklearn() -> None:
    dataset = in_memory(SynthSettings(240, 1.0, 1))
    found = age_shortcut(dataset)
    people = {r.patient: r for r in dataset.recordings if r.diagnosis in ("COPD", "Healthy")}
    known = [r for r in people.values() if r.age is not None]
    area = roc_auc_score([r.diagnosis == "COPD" for r in known], [r.age for r in known])
    assert found is not None
    assert found["value"] == pytest.approx(max(area, 1 - area))
    assert found["patients"] == len(known) < len(people)
