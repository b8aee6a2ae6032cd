"""Trials side by side on one device: real processes, on the CPU where there is no GPU."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from support.toy import toy_config

from resp_tune.cluster.connect import Cluster, Node
from resp_tune.cluster.resources import Machine, TrialResources
from resp_tune.errors import RunError
from resp_tune.execution import trials_per_gpu
from resp_tune.execution.trials_per_gpu import (
    PackingResult,
    Workload,
    choose,
    measure,
    measure_all,
    stand_in,
)
from resp_tune.harness import auto_packing as packed_search
from resp_tune.harness import spec as prepared_search
from resp_tune.harness import validate as preparing
from resp_tune.harness.auto_packing import choose_trials_per_gpu
from resp_tune.search import read_options
from resp_tune.training.compute_device import ComputeDevice
from resp_tune.training.loop import fit

SMALL = Workload(train=12, validation=6, classes=3, folds=2)


def test_the_stand_in_has_the_size_of_the_real_thing() -> None:
    config = toy_config(epochs=1)
    folds = stand_in(config, SMALL)
    assert len(folds) == 2
    split = (folds[0].train, folds[0].validation)
    assert [len(side.labels) for side in split] == [12, 6]
    assert {int(n) for side in split for n in side.clips.count} == {config.clip_frames}
    assert folds[0].train.clips.frames.values.dtype == torch.float16
    (result,) = fit(config, folds)
    assert result.finite


def test_two_at_once_are_measured() -> None:
    found = list(measure_all(toy_config(epochs=1), SMALL, "cpu", threads={1: 2, 2: 1}, epochs=2))
    assert [p.trials for p in found] == [1, 2]
    assert all(p.epochs_per_second > 0 for p in found)


def test_without_memory_for_so_many_nothing_is_measured() -> None:
    """Frames of a hundred terabytes: the process says no, and nobody waits for it."""
    huge = Workload(train=10**10, validation=6, classes=3)
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
    measured = [PackingResult(2**n, rate) for n, rate in enumerate(rates)]
    assert choose(measured) == trials


def prepared_with(folder: Path, *flags: str) -> Any:
    args = ["--trials-per-gpu", "auto", f"--storage={folder}", "--space=search_spaces/smoke.yaml"]
    return preparing.validate(read_options([*args, *flags]))


def test_auto_without_a_gpu_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RESP_TUNE_LOGICAL_GPUS", "1")
    spec = choose_trials_per_gpu(prepared_with(tmp_path, "--gpus=2"))
    assert (spec.slots.concurrency, spec.slots.gpus) == (2, 1.0)
    assert "trials here run on the CPU" in capsys.readouterr().err


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Workload, str, int, int]]:
    """A machine of 16 cores and 2 GPUs on which 2 trials pay: pretended, as are the figures."""
    seen = []

    def measured(_: object, load: Workload, device: str, trials: int, **how: int) -> PackingResult:
        seen.append((load, device, trials, how["threads"]))
        return PackingResult(trials, {1: 1.0, 2: 2.0, 4: 2.05, 8: 2.05}[trials])

    monkeypatch.setattr(trials_per_gpu, "measure", measured)
    monkeypatch.setattr(
        prepared_search, "this_device", lambda kind: ComputeDevice(kind, "a GPU", False)
    )
    monkeypatch.setattr(preparing, "this_machine", lambda: Machine(16, 2, 10**11))
    return seen


def test_auto_with_gpus_takes_what_was_measured(
    tmp_path: Path,
    asked: list[tuple[Workload, str, int, int]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain = prepared_with(tmp_path, "--folds=2")
    assert asked == [], "nothing is started before the search holds its name"
    spec = choose_trials_per_gpu(plain)
    assert (spec.slots.concurrency, spec.slots.gpus, spec.slots.cpus) == (4, 0.5, 4.0)
    assert "trials per GPU: 2 (epochs a second" in capsys.readouterr().err
    assert [(device, trials, threads) for _, device, trials, threads in asked] == [
        ("cuda", 1, 8), ("cuda", 2, 4), ("cuda", 4, 2), ("cuda", 8, 1),
    ]  # fmt: skip
    load = asked[0][0]
    assert (load.folds, load.classes) == (2, len(plain.datamodule.split.classes))
    assert load.train == len(plain.datamodule.folds()[0].train.label)


@pytest.mark.parametrize(
    ("flag", "tried"),
    [("--cpus-per-trial=4", [1, 2]), ("--concurrency=3", [1, 2]), ("--concurrency=1", [1])],
)
def test_auto_tries_no_more_than_there_is_room_for(
    tmp_path: Path, asked: list[tuple[Workload, str, int, int]], flag: str, tried: list[int]
) -> None:
    spec = choose_trials_per_gpu(prepared_with(tmp_path, flag))
    assert [trials for _, _, trials, _ in asked] == tried
    assert spec.slots.concurrency <= 4


def test_what_cannot_be_measured_is_a_line(
    tmp_path: Path, asked: list[tuple[Workload, str, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> PackingResult:
        raise ZeroDivisionError("a bug\nin two lines")

    monkeypatch.setattr(trials_per_gpu, "measure", fails)
    with pytest.raises(RunError, match="none was started: ZeroDivisionError: a bug in two lines"):
        choose_trials_per_gpu(prepared_with(tmp_path))
    assert asked == []


# On a cluster


H100, T4 = "accelerator_type:H100", "accelerator_type:T4"


def on_cluster(folder: Path, *nodes: tuple[str, Machine], flags: tuple[str, ...] = ()) -> Any:
    """A search that has joined a cluster of these types and machines."""
    plain = prepared_with(folder, *flags)
    found = tuple(
        Node(str(n), "host", f"10.0.0.{n}", machine, gpu_type)
        for n, (gpu_type, machine) in enumerate(nodes)
    )
    cluster = Cluster("10.0.0.1:6379", found)
    slots = preparing.slots_of(plain.settings, cluster.machines, str(cluster))
    return dataclasses.replace(plain, cluster=cluster, slots=slots)


@pytest.fixture
def bears(monkeypatch: pytest.MonkeyPatch, asked: object) -> dict[str, Any]:
    """How many trials a GPU of each type is made to bear; `tried`: what was measured last."""
    pays: dict[str, Any] = {}

    def measured(divided: Any, *_: object, epochs: int) -> dict[str, list[PackingResult]]:
        pays["tried"] = {name: list(slots) for name, slots in divided.items()}
        return {
            name: [PackingResult(n, float(min(n, pays[name]))) for n in slots]
            for name, slots in divided.items()
        }

    monkeypatch.setattr(packed_search, "measure_types", measured)
    return pays


BIG, SMALL_ONE = Machine(32, 2, 10**11), Machine(6, 2, 10**11)
HEAD = Machine(8, 0, 10**11)


def test_types_that_bear_the_same_need_no_constraint(
    tmp_path: Path, bears: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    bears |= {H100: 2, T4: 2}
    nodes = (("node:10.0.0.0", HEAD), (H100, BIG), (T4, SMALL_ONE))
    spec = choose_trials_per_gpu(on_cluster(tmp_path, *nodes))
    assert spec.typed is None
    assert spec.slots == TrialResources(8, 1.5, 0.5, 1)
    assert bears["tried"] == {H100: [1, 2, 4, 8], T4: [1, 2]}, "as far as the cores go"
    said = capsys.readouterr().err
    assert "trials per GPU: 2 on H100 (epochs a second of so many at once: 1: 1.00, 2" in said
    assert "trials per GPU: 2 on T4 (" in said


def test_types_that_differ_have_slots_of_their_own(tmp_path: Path, bears: dict[str, Any]) -> None:
    bears |= {H100: 8, T4: 2}
    spec = choose_trials_per_gpu(on_cluster(tmp_path, (H100, BIG), (H100, BIG), (T4, SMALL_ONE)))
    assert spec.typed == {
        H100: TrialResources(32, 2.0, 0.125, 2),
        T4: TrialResources(4, 1.5, 0.5, 1),
    }
    assert spec.slots == TrialResources(6, 3.0, 1.0, 1), (
        "a whole GPU for the canary, and all threads"
    )
    assert spec.trial_tags["resp_tune.threads"] == "1"


def test_caps_on_a_cluster_are_for_all_types(tmp_path: Path, bears: dict[str, Any]) -> None:
    bears |= {H100: 8, T4: 1}
    flags = ("--gpus=2", "--concurrency=5")
    spec = choose_trials_per_gpu(on_cluster(tmp_path, (H100, BIG), (T4, SMALL_ONE), flags=flags))
    assert bears["tried"] == {H100: [1, 2], T4: [1, 2]}, "5 trials on 2 GPUs"
    assert spec.typed == {
        H100: TrialResources(4, 8.0, 0.5, 8),
        T4: TrialResources(2, 3.0, 1.0, 3),
    }


def test_a_cluster_of_logical_gpus_measures_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RESP_TUNE_LOGICAL_GPUS", "1")
    plain = on_cluster(tmp_path, (T4, SMALL_ONE))
    assert choose_trials_per_gpu(plain) is plain
    assert "trials here run on the CPU" in capsys.readouterr().err
