"""Trials side by side on one device: real processes, on the CPU where there is no GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from support.toy import toy_config

from resp_tune.cluster.connect import Cluster, Node, live_nodes
from resp_tune.cluster.local_ray import local_ray
from resp_tune.cluster.node_calls import call_on_nodes
from resp_tune.cluster.resources import Machine, ResourceRequest, TrialResources
from resp_tune.errors import RunError
from resp_tune.execution import trials_per_gpu
from resp_tune.execution.trials_per_gpu import (
    Workload,
    benchmark_slots,
    choose,
    measure,
    measure_all,
    stand_in,
)
from resp_tune.harness.stages import choose_trials_per_gpu
from resp_tune.harness.validate import validate
from resp_tune.search import read_options
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


@pytest.mark.thorough
def test_two_at_once_are_measured() -> None:
    rates = measure_all(toy_config(epochs=1), SMALL, "cpu", {2: 1}, 2)
    assert list(rates) == [2]
    assert rates[2] > 0


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
    assert choose({2**n: rate for n, rate in enumerate(rates)}) == trials


# Choosing, with pretended measurements

HERE = Machine(16, 2, 10**11)
LOAD = Workload(train=30, validation=10, classes=3, folds=2)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Workload, str, int, int]]:
    """A GPU on which two trials at once pay: load, device, trials, threads of each measurement."""
    calls = []

    def fake(_: object, load: Workload, device: str, trials: int, **how: int) -> float:
        calls.append((load, device, trials, how["threads"]))
        return {1: 1.0, 2: 2.0, 4: 2.05, 8: 2.05}[trials]

    monkeypatch.setattr(trials_per_gpu, "measure", fake)
    return calls


def test_the_best_number_of_trials_on_this_machine(
    measured: list[tuple[Workload, str, int, int]], said: list[str]
) -> None:
    slots = benchmark_slots(ResourceRequest(), HERE, toy_config(), LOAD)
    assert slots == TrialResources(4, 4.0, 0.5, 4)
    assert said == [
        "trials per GPU: 2 (epochs a second of so many at once: 1: 1.00, 2: 2.00, 4: 2.05, 8: 2.05)"
    ]
    assert measured == [
        (LOAD, "cuda", 1, 8), (LOAD, "cuda", 2, 4), (LOAD, "cuda", 4, 2), (LOAD, "cuda", 8, 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("request_", "tried"),
    [
        (ResourceRequest(cpus_per_trial=4.0), [1, 2]),
        (ResourceRequest(concurrency=3), [1, 2]),
        (ResourceRequest(concurrency=1), [1]),
        (ResourceRequest(gpus=1, concurrency=4), [1, 2, 4]),
    ],
)
def test_no_more_trials_are_measured_than_the_request_allows(
    measured: list[tuple[Workload, str, int, int]], request_: ResourceRequest, tried: list[int]
) -> None:
    slots = benchmark_slots(request_, HERE, toy_config(), LOAD)
    assert [trials for _, _, trials, _ in measured] == tried
    assert slots.concurrency <= 4


def test_a_failed_measurement_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> float:
        raise ZeroDivisionError("a bug\nin two lines")

    monkeypatch.setattr(trials_per_gpu, "measure", fails)
    with pytest.raises(RunError, match="no trial was started: ZeroDivisionError: a bug in two l"):
        benchmark_slots(ResourceRequest(), HERE, toy_config(), LOAD)


BIG, SMALL_ONE, HEAD = Machine(32, 2, 10**11), Machine(6, 2, 10**11), Machine(8, 0, 10**11)


def cluster(*machines: tuple[str, Machine]) -> Cluster:
    nodes = (Node(f"id{n}", "host", f"10.0.0.{n}", m, t) for n, (t, m) in enumerate(machines))
    return Cluster("10.0.0.1:6379", tuple(nodes))


@pytest.fixture
def best(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Best number of trials by node id, to be set; `calls`: nodes, CPUs and threads measured."""
    best: dict[str, Any] = {"calls": []}

    def fake(_: object, arguments: Any, *, cpus: float, gpus: float) -> dict[str, Any]:
        threads = next(iter(arguments.values()))[3]
        assert gpus == 1
        best["calls"].append((sorted(arguments), cpus, threads))
        return {i: {n: float(min(n, best[i])) for n in threads} for i in arguments}

    monkeypatch.setattr(trials_per_gpu, "call_on_nodes", fake)
    return best


def test_the_smallest_number_of_all_gpu_types_holds_for_the_cluster(
    best: dict[str, Any], said: list[str]
) -> None:
    best |= {"id1": 8, "id3": 2}
    pool = cluster(("10.0.0.0", HEAD), ("H100", BIG), ("H100", BIG), ("T4", HERE))
    slots = benchmark_slots(ResourceRequest(), pool, toy_config(), LOAD)
    assert slots == TrialResources(12, 4.0, 0.5, 4)
    assert best["calls"] == [(["id1", "id3"], 8.0, {1: 8, 2: 4, 4: 2, 8: 1})]
    assert said[0].startswith("trials per GPU: 8 on H100 (epochs a second of so many at once: 1: ")
    assert said[1].startswith("trials per GPU: 2 on T4 (")


def test_the_machine_with_the_fewest_cores_per_gpu_bounds_what_is_measured(
    best: dict[str, Any],
) -> None:
    best |= {"id0": 8, "id1": 8}
    pool = cluster(("H100", BIG), ("T4", SMALL_ONE))
    slots = benchmark_slots(ResourceRequest(), pool, toy_config(), LOAD)
    assert slots == TrialResources(8, 1.5, 0.5, 1)
    assert best["calls"][0][2] == {1: 3, 2: 1}


@pytest.mark.slow
def test_a_benchmark_on_a_node() -> None:
    """On a node with two logical GPUs; without CUDA the measurement fails, in one line."""
    with local_ray(Machine(2, 0, 10**9), 2):
        nodes = live_nodes()
        arguments = {nodes[0].id: (toy_config(epochs=1), SMALL, "cpu", {1: 1})}
        results = call_on_nodes(measure_all, arguments, cpus=1, gpus=1)
        if not torch.cuda.is_available():
            pool = Cluster("here", nodes)
            with pytest.raises(RunError, match=r"measured on [\d.]+, so no trial was started: "):
                benchmark_slots(ResourceRequest(), pool, toy_config(epochs=1), SMALL)
    assert nodes[0].gpu_type == nodes[0].address, "Ray has no name for logical GPUs"
    assert list(results[nodes[0].id]) == [1]


def test_caps_on_a_cluster(best: dict[str, Any]) -> None:
    best |= {"id0": 8, "id1": 1}
    request = ResourceRequest(gpus=2, concurrency=5)
    pool = cluster(("H100", BIG), ("T4", SMALL_ONE))
    assert benchmark_slots(request, pool, toy_config(), LOAD) == TrialResources(2, 3.0, 1.0, 3)
    assert list(best["calls"][0][2]) == [1, 2], "5 trials on 2 GPUs, 3 cores for each"


def test_auto_without_a_gpu_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    monkeypatch.setenv("RESP_TUNE_LOGICAL_GPUS", "1")
    flags = ["--trials-per-gpu=auto", "--gpus=2", "--space=search_spaces/smoke.yaml"]
    spec = validate(read_options([*flags, f"--storage={tmp_path}"]))
    assert choose_trials_per_gpu(spec) is spec
    assert "trials here run on the CPU" in said[-1]
