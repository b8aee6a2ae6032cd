"""How machines are divided among trials."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from resp_tune.cluster.connect import Node, cluster_capacity
from resp_tune.cluster.resources import (
    TRIAL_MEMORY,
    Machine,
    ResourceRequest,
    TrialResources,
    allocate,
    this_machine,
    trial_capacity,
)
from resp_tune.errors import UserError

GIGABYTE = 10**9
LAPTOP = Machine(cpus=2, gpus=0, memory=8 * GIGABYTE)
SERVER = Machine(cpus=16, gpus=2, memory=128 * GIGABYTE)


def plan(*machines: Machine, where: str = "this machine", **flags: Any) -> TrialResources:
    return allocate(machines, ResourceRequest(**flags), where)


@pytest.mark.parametrize(
    ("machine", "asked", "slots"),
    [
        # Without a GPU: a core a trial, as far as memory goes.
        (LAPTOP, {}, TrialResources(2, 1.0, 0.0, 1)),
        (Machine(8, 0, 4 * GIGABYTE), {}, TrialResources(2, 4.0, 0.0, 4)),
        (Machine(8, 0, GIGABYTE // 2), {}, TrialResources(1, 8.0, 0.0, 8)),
        (Machine(8, 0, 16 * GIGABYTE), {"concurrency": 3}, TrialResources(3, 2.0, 0.0, 2)),
        (LAPTOP, {"concurrency": 1}, TrialResources(1, 2.0, 0.0, 2)),
        (LAPTOP, {"concurrency": 2, "cpus_per_trial": 0.5}, TrialResources(2, 0.5, 0.0, 1)),
        (LAPTOP, {"concurrency": 3}, TrialResources(3, 0.666, 0.0, 1)),
        (LAPTOP, {"cpus_per_trial": 0.5}, TrialResources(4, 0.5, 0.0, 1)),
        (LAPTOP, {"cpus_per_trial": 2.0}, TrialResources(1, 2.0, 0.0, 2)),
        # All GPUs that there are, unless fewer are asked for.
        (SERVER, {}, TrialResources(2, 8.0, 1.0, 8)),
        (SERVER, {"gpus": 1}, TrialResources(1, 16.0, 1.0, 16)),
        (SERVER, {"gpus": 2, "trials_per_gpu": 4}, TrialResources(8, 2.0, 0.25, 2)),
        (SERVER, {"concurrency": 1}, TrialResources(1, 16.0, 1.0, 16)),
        (SERVER, {"trials_per_gpu": 3, "concurrency": 99}, TrialResources(6, 16 / 6, 1 / 3, 2)),
        (SERVER, {"gpus": 0, "concurrency": 4}, TrialResources(4, 4.0, 0.0, 4)),
        # Rehearsals.
        (LAPTOP, {"gpus": 4, "logical_gpus": True}, TrialResources(4, 0.5, 1.0, 1)),
        (
            LAPTOP,
            {"gpus": 4, "logical_gpus": True, "concurrency": 2},
            TrialResources(2, 1.0, 1.0, 1),
        ),
    ],
)
def test_slots(machine: Machine, asked: dict[str, Any], slots: TrialResources) -> None:
    assert plan(machine, **asked) == slots


@pytest.mark.parametrize(
    ("machine", "asked", "message"),
    [
        (
            LAPTOP,
            {"gpus": 1},
            "--gpus 1: this machine has no GPU that torch can use; give --gpus 0 for the CPU, or "
            "set RESP_TUNE_LOGICAL_GPUS=1 to rehearse",
        ),
        (
            SERVER,
            {"gpus": 4},
            "--gpus 4: this machine has 2 GPUs that torch can use; give --gpus 2",
        ),
        (Machine(4, 1, GIGABYTE), {"gpus": 2}, "has 1 GPU that torch can use; give --gpus 1"),
        (
            LAPTOP,
            {"cpus_per_trial": 3.0},
            "1 trials at once with 3 CPUs each need more than the 2 CPUs of this machine: lower",
        ),
        (LAPTOP, {"concurrency": 2, "cpus_per_trial": 1.5}, "2 trials at once with 1.5 CPUs each"),
        (
            SERVER,
            {"cpus_per_trial": 9.0},
            "2 trials at once with 9 CPUs each need more than the 16",
        ),
    ],
)
def test_what_the_machine_has_not(machine: Machine, asked: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        plan(machine, **asked)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@given(
    st.builds(Machine, st.integers(1, 128), st.integers(0, 8), st.integers(0, 10**12)),
    st.none() | st.integers(0, 8),
    st.integers(1, 8),
    st.none() | st.integers(1, 300),
    st.none() | st.floats(0.01, 64),
    st.booleans(),
)
def test_never_more_than_there_is(
    machine: Machine,
    gpus: int | None,
    trials_per_gpu: int,
    concurrency: int | None,
    cpus_per_trial: float | None,
    logical: bool,
) -> None:
    asked = {
        "gpus": gpus,
        "trials_per_gpu": trials_per_gpu,
        "concurrency": concurrency,
        "cpus_per_trial": cpus_per_trial,
        "logical_gpus": logical,
    }
    try:
        slots = plan(machine, **asked)
    except UserError:
        return
    have = gpus if gpus is not None else machine.gpus
    assert slots.concurrency >= 1
    assert slots.threads >= 1
    assert 0 < slots.cpus * slots.concurrency <= machine.cpus + 1e-3
    assert slots.gpus * slots.concurrency <= have + 1e-9
    assert (slots.gpus > 0) == (have > 0)
    assert logical or have <= machine.gpus
    assert cpus_per_trial is None or slots.cpus == cpus_per_trial


HEAD = Machine(cpus=0, gpus=0, memory=4 * GIGABYTE)
WORKER = Machine(cpus=8, gpus=2, memory=32 * GIGABYTE)
LARGE = Machine(cpus=32, gpus=4, memory=128 * GIGABYTE)


@pytest.mark.parametrize(
    ("machines", "asked", "slots"),
    [
        ((HEAD, WORKER, WORKER), {}, TrialResources(4, 4.0, 1.0, 4)),
        ((HEAD, WORKER, WORKER), {"gpus": 3}, TrialResources(3, 4.0, 1.0, 4)),
        ((WORKER, LARGE), {}, TrialResources(6, 4.0, 1.0, 4)),  # the smaller one decides
        ((WORKER, LARGE), {"trials_per_gpu": 2}, TrialResources(12, 2.0, 0.5, 2)),
        ((WORKER, SERVER, HEAD), {"gpus": 0}, TrialResources(24, 1.0, 0.0, 1)),
        ((LAPTOP, WORKER), {"gpus": 0, "concurrency": 4}, TrialResources(4, 2.0, 0.0, 2)),
        ((LAPTOP, LAPTOP), {"gpus": 0, "concurrency": 6}, TrialResources(6, 0.666, 0.0, 1)),
        ((LAPTOP, WORKER), {"cpus_per_trial": 2.0, "gpus": 0}, TrialResources(5, 2.0, 0.0, 2)),
    ],
)
def test_slots_of_a_cluster(
    machines: tuple[Machine, ...], asked: dict[str, Any], slots: TrialResources
) -> None:
    assert plan(*machines, **asked) == slots
    assert trial_capacity(slots, machines) >= slots.concurrency


def test_room_grows_with_the_machines() -> None:
    slots = plan(HEAD, WORKER, trials_per_gpu=2)
    assert trial_capacity(slots, (HEAD, WORKER)) == slots.concurrency == 4
    assert trial_capacity(slots, (HEAD, WORKER, WORKER)) == 8
    assert trial_capacity(slots, (HEAD,)) == 0


def test_the_capacity_of_a_cluster_follows_its_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("resp_tune.cluster.connect.time.monotonic", lambda: now[0])
    nodes = [Node("a", "a", "10.0.0.1", WORKER, "T4")]
    slots = plan(WORKER, trials_per_gpu=2)
    count = cluster_capacity(slots, None, lambda: nodes)
    capped = cluster_capacity(slots, 5, lambda: nodes)
    assert (count(), capped()) == (4, 4)
    nodes.append(Node("b", "b", "10.0.0.2", WORKER, "T4"))
    assert count() == 4, "counted within the last second"
    now[0] = 1.0
    assert (count(), capped()) == (8, 5)
    nodes.clear()
    now[0] = 2.0
    assert count() == 0


def test_no_machine_holds_half_a_trial() -> None:
    with pytest.raises(UserError, match="need more than the 4 CPUs of the cluster"):
        plan(LAPTOP, LAPTOP, cpus_per_trial=3.0, where="the cluster")


@given(
    st.lists(
        st.builds(Machine, st.integers(0, 64), st.integers(0, 8), st.integers(0, 10**12)),
        min_size=1, max_size=6,
    ),
    st.none() | st.integers(0, 8),
    st.integers(1, 8),
    st.none() | st.integers(1, 300),
    st.none() | st.floats(0.01, 64),
)  # fmt: skip
def test_there_is_room_for_every_slot(
    machines: list[Machine],
    gpus: int | None,
    trials_per_gpu: int,
    concurrency: int | None,
    cpus_per_trial: float | None,
) -> None:
    try:
        slots = plan(
            *machines,
            gpus=gpus,
            trials_per_gpu=trials_per_gpu,
            concurrency=concurrency,
            cpus_per_trial=cpus_per_trial,
        )
    except UserError:
        return
    assert trial_capacity(slots, machines) >= slots.concurrency >= 1


def test_slots_in_words() -> None:
    assert str(TrialResources(1, 2.0, 0.0, 2)) == "1 trial at once, each on 2 CPU"
    assert str(TrialResources(8, 0.5, 0.25, 1)) == "8 trials at once, each on 0.5 CPU and 0.25 GPU"


def test_this_machine() -> None:
    machine = this_machine()
    assert machine.cpus >= 1
    assert machine.gpus >= 0
    assert machine.memory > TRIAL_MEMORY / 100
