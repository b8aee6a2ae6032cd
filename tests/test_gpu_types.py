"""Types of GPU that take different numbers of trials: which one is next, and which one is gone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.toy_trials import trial
from support.trial_queues import recorder_of, study_at

from resp_tune.cluster.capacity import ClusterCapacity, TypedRoom
from resp_tune.cluster.connect import Node
from resp_tune.cluster.gpu_types import bundle, called, next_type, type_of
from resp_tune.cluster.resources import Machine, TrialResources
from resp_tune.execution.searcher import RestartTrialsError, StudySearcher, StudyStopper

H100, T4, UNNAMED = "accelerator_type:H100", "accelerator_type:T4", "node:10.0.0.7"
SLOTS = {H100: TrialResources(8, 2.0, 0.25, 2), T4: TrialResources(2, 4.0, 1.0, 4)}
WHOLE = TrialResources(4, 4.0, 1.0, 2)


def node(gpu_type: str, *, cpus: int = 16, gpus: int = 2, name: str = "a") -> Node:
    return Node(name, name, "10.0.0.1", Machine(cpus, gpus, 10**11), gpu_type)


def room_of(nodes: list[Node], **most: Any) -> TypedRoom:
    limits = {"gpus": None, "most": None} | most
    return TypedRoom(SLOTS, WHOLE, **limits, nodes=lambda: tuple(nodes))


def filled(room: TypedRoom) -> list[str]:
    """The types of the trials that are handed out until there is no more room."""
    held: list[str] = []
    while len(held) < room() and (chosen := room.next_type(held)) is not None:
        held.append(chosen)
    return held


@pytest.mark.parametrize(
    ("resources", "found", "words"),
    [
        (["CPU", "GPU", H100, "node:10.0.0.7", "memory"], H100, "H100"),
        (["CPU", "GPU", "node:10.0.0.7"], UNNAMED, "10.0.0.7"),
    ],
)
def test_the_type_of_a_node(resources: list[str], found: str, words: str) -> None:
    assert type_of(resources, "10.0.0.7") == found
    assert called(found) == words


def test_a_trial_asks_for_its_share_of_a_type() -> None:
    assert bundle(H100, SLOTS[H100]) == {"CPU": 2.0, "GPU": 0.25, H100: 0.001}


def test_the_type_of_which_most_is_free_is_next() -> None:
    held = filled(room_of([node(H100), node(T4)]))
    assert held[:6] == [H100, T4, H100, H100, H100, H100], "2 and 2 GPUs, 1.75 and 2, 1.75 and 1 …"
    assert Counter(held) == {H100: 8, T4: 2}


@pytest.mark.parametrize(
    ("most", "count"),
    [
        ({"most": 3}, {H100: 2, T4: 1}),
        ({"most": 9}, {H100: 7, T4: 2}),
        ({"gpus": 1}, {H100: 4}),
        ({"gpus": 2}, {H100: 4, T4: 1}),
        ({"gpus": 3}, {H100: 8, T4: 1}),
        ({"gpus": 3, "most": 4}, {H100: 3, T4: 1}),
    ],
)
def test_caps_are_for_all_types_together(most: dict[str, int], count: dict[str, int]) -> None:
    assert Counter(filled(room_of([node(H100), node(T4)], **most))) == count


def test_cores_bound_the_room_of_a_node() -> None:
    assert Counter(filled(room_of([node(H100, cpus=5), node(T4, cpus=3)]))) == {H100: 2}


def test_a_node_without_gpus_has_no_room() -> None:
    assert room_of([node(UNNAMED, gpus=0)])() == 0
    assert room_of([])() == 0
    assert room_of([]).next_type([]) is None


def test_a_type_that_joins_later_has_a_trial_on_each_gpu_and_is_said_once(said: list[str]) -> None:
    nodes = [node(H100)]
    room = room_of(nodes)
    assert room() == 8
    nodes.append(node(UNNAMED))
    assert Counter(filled(room)) == {H100: 8, UNNAMED: 2}
    nodes.pop()
    assert room() == 8
    nodes.append(node(UNNAMED))
    assert room() == 10
    assert said == ["trials per GPU: 1 on 10.0.0.7, which joined after the others were measured"]
    assert room.slots[UNNAMED] == WHOLE


def test_a_type_is_gone_only_where_trials_can_go_elsewhere() -> None:
    nodes = [node(H100), node(T4)]
    room = room_of(nodes)
    assert room.gone([H100, T4]) == []
    nodes.pop()
    assert room.gone([H100, T4, T4]) == [T4]
    assert room.gone([H100]) == []
    nodes.clear()
    assert room.gone([H100, T4]) == [], "they wait for nodes to join, as with one type"


def test_room_of_one_type() -> None:
    nodes = (node(H100), node(H100, cpus=2))
    assert ClusterCapacity(SLOTS[H100], None, lambda: nodes)() == 9
    assert ClusterCapacity(SLOTS[H100], 5, lambda: nodes)() == 5


@given(
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 9), min_size=1),
    st.fixed_dictionaries({name: st.sampled_from([1, 2, 3, 4, 8]) for name in "abc"}),
    st.none() | st.integers(1, 9),
)
def test_no_type_gets_more_than_its_room_and_all_is_used(
    room: dict[str, int], per_gpu: dict[str, int], gpus: int | None
) -> None:
    slots = {name: TrialResources(9, 1.0, 1 / count, 1) for name, count in per_gpu.items()}
    held: list[str] = []
    while (chosen := next_type(slots, room, held, gpus)) is not None:
        held.append(chosen)
    counts = Counter(held)
    assert all(count <= room[name] for name, count in counts.items())
    used = sum(slots[name].gpus for name in held)
    left = float("inf") if gpus is None else gpus - used
    assert left >= -1e-6
    full = [name for name in room if counts[name] == room[name]]
    assert all(name in full or slots[name].gpus > left for name in room)


# Trials and their types


@pytest.fixture
def nodes() -> list[Node]:
    return [node(H100, gpus=1), node(T4, gpus=1)]


@pytest.fixture
def searcher(tmp_path: Path, nodes: list[Node]) -> StudySearcher:
    return StudySearcher(recorder_of(study_at(tmp_path), budget=9), room_of(nodes))


def handed_out(searcher: StudySearcher, names: Sequence[str]) -> list[dict[str, Any]]:
    configs = [searcher.suggest(name) for name in names]
    found = [config for config in configs if isinstance(config, dict)]
    assert found == configs
    return found


def test_a_trial_is_handed_out_with_what_it_asks_for(searcher: StudySearcher) -> None:
    configs = handed_out(searcher, "abcde")
    assert Counter(max(config["bundle"]) for config in configs) == {H100: 4, T4: 1}
    assert searcher.suggest("f") is None
    on_t4 = next(name for name, gpu in searcher.types.items() if gpu == T4)
    searcher.on_trial_complete(on_t4, error=True)
    (next_one,) = handed_out(searcher, "f")
    assert next_one["bundle"] == bundle(T4, SLOTS[T4]), "the room that was left"


def test_a_trial_has_the_memory_of_its_share(tmp_path: Path) -> None:
    made = trial(tmp_path)
    config = {"config": {}, "folder": "0", "epochs_reported": 0, "attempt": "a"}
    made.reset_config({**config, "bundle": bundle(H100, SLOTS[H100])})
    assert made.work.gpus == 0.25


def test_trials_of_a_type_that_is_gone_are_handed_out_anew(
    tmp_path: Path, searcher: StudySearcher, nodes: list[Node]
) -> None:
    handed_out(searcher, "abcde")
    searcher.runs.advance(1, [{"epoch": 1, "val_macro_f1": 0.5}])
    stops = StudyStopper(searcher)
    assert not stops.stop_all()
    del nodes[1]
    assert stops.stop_all()
    assert isinstance(searcher.halted, RestartTrialsError)
    assert "no GPU of type T4 is left: the trials that ran" in str(searcher.halted)
    again = StudySearcher(recorder_of(study_at(tmp_path), budget=9), room_of(nodes))
    configs = handed_out(again, "uvwx")
    assert [config["key"] for config in configs] == [0, 1, 2, 3]
    assert [config["epochs_reported"] for config in configs] == [0, 1, 0, 0]
    assert {max(config["bundle"]) for config in configs} == {H100}
    assert again.suggest("y") is None, "the fifth waits for room"
    assert not StudyStopper(again).stop_all()
