"""Trials side by side on one device: real processes, on the CPU where there is no GPU."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import toy_config

from resp_tune.config import TrialConfig
from resp_tune.learning import packing
from resp_tune.learning.packing import Load, Packed, choose, measure, measure_all, stand_in
from resp_tune.learning.training import fit
from resp_tune.search import read_settings
from resp_tune.searching import prepare as preparing
from resp_tune.tuning.plan import Machine

SMALL = Load(train=12, validation=6, classes=3, folds=2)


def test_the_stand_in_has_the_size_of_the_real_thing() -> None:
    config = toy_config(epochs=1)
    folds = stand_in(config, SMALL)
    assert len(folds) == 2
    sides = (folds[0].train, folds[0].validation)
    assert [len(side.labels) for side in sides] == [12, 6]
    assert {int(n) for side in sides for n in side.clips.count} == {config.clip_frames}
    assert folds[0].train.clips.frames.values.dtype == torch.float16
    (result,) = fit(config, folds)
    assert result.finite


def test_two_at_once_are_measured() -> None:
    found = list(measure_all(toy_config(epochs=1), SMALL, "cpu", cpus=2, epochs=2, counts=(1, 2)))
    assert [p.trials for p in found] == [1, 2]
    assert all(p.epochs_per_second > 0 for p in found)


def test_without_memory_for_so_many_nothing_is_measured() -> None:
    """Frames of a hundred terabytes: the process says no, and nobody waits for it."""
    huge = Load(train=10**10, validation=6, classes=3)
    assert measure(toy_config(epochs=1), huge, "cpu", 2, epochs=1, threads=1) is None


@pytest.mark.parametrize(
    ("rates", "trials"),
    [
        ([10.0, 19.0, 30.0, 31.0], 4),  # eight bring 3 % more
        ([10.0, 9.0], 1),
        ([10.0, 10.4], 1),
        ([10.0, 10.6], 2),
        ([10.0, 9.0, 12.0], 4),
        ([], 1),
    ],
)
def test_as_many_as_pay(rates: list[float], trials: int) -> None:
    measured = [Packed(2**n, rate) for n, rate in enumerate(rates)]
    assert choose(measured) == trials


def prepared_with(folder: Path, *flags: str) -> Any:
    args = ["--trials-per-gpu", "auto", f"--storage={folder}", "--space=search_spaces/smoke.yaml"]
    said: list[str] = []
    return preparing.prepare(read_settings([*args, *flags]), said.append), said


def test_auto_without_a_gpu_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RESP_TUNE_LOGICAL_GPUS", "1")
    prepared, said = prepared_with(tmp_path, "--gpus=2")
    assert (prepared.slots.concurrency, prepared.slots.gpus) == (2, 1.0)
    assert any("trials here run on the CPU" in line for line in said)


def test_auto_with_gpus_takes_what_was_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine is pretended, and so are the figures: no GPU is needed to divide one."""
    asked: list[tuple[TrialConfig, Load, str]] = []

    def measured(config: TrialConfig, load: Load, device: str, **_: Any) -> list[Packed]:
        asked.append((config, load, device))
        return [Packed(1, 1.0), Packed(2, 2.0), Packed(4, 2.05)]

    monkeypatch.setattr(packing, "measure_all", measured)
    monkeypatch.setattr(preparing, "this_machine", lambda: Machine(16, 2, 10**11))
    monkeypatch.setattr(preparing, "settle_precision", lambda config, _: config)
    dry, said = prepared_with(tmp_path, "--dry-run", "--folds=2")
    assert asked == []
    assert "trials per GPU: measured when the search starts" in said
    prepared, said = prepared_with(tmp_path, "--folds=2")
    assert (prepared.slots.concurrency, prepared.slots.gpus, prepared.slots.cpus) == (4, 0.5, 4.0)
    assert any(line.startswith("trials per GPU: 2 (epochs a second") for line in said)
    ((config, load, device),) = asked
    assert config == dataclasses.replace(dry.space.baseline())
    assert (load.folds, load.classes, device) == (2, len(dry.problem.sides.classes), "cuda")
    assert load.train == len(dry.problem.folds()[0].train.label)
