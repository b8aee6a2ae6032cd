"""Planted faults: named points, refused names, and no cost without the variable."""

from __future__ import annotations

import ast
import json
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from support.searches import command

import resp_tune
from resp_tune.common import fault_points
from resp_tune.common.fault_points import (
    ACTIONS,
    FOLDER,
    JOURNAL,
    POINTS,
    VARIABLE,
    PlantedError,
    fault_point,
    planted,
)
from resp_tune.errors import UserError


def points_in_code() -> Counter[str]:
    """The names in all calls of `fault_point` in the package, by how often each is called."""
    counts: Counter[str] = Counter()
    for path in Path(resp_tune.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "fault_point":
                name = ast.literal_eval(node.args[0])
                counts[name] += 1
    return counts


def test_every_point_is_registered_and_at_one_place_of_the_code() -> None:
    assert points_in_code() == Counter(list(POINTS))


def test_a_fault_applies_at_its_number_and_subject() -> None:
    with planted("trial-ended:raise@2,epoch/0:out-of-memory@3,epoch/1:raise@*"):
        fault_point("trial-ended")
        with pytest.raises(PlantedError):
            fault_point("trial-ended")
        fault_point("trial-ended")
        for epoch in (1, 2, 4):
            fault_point("epoch", "0", epoch)
        with pytest.raises(MemoryError):
            fault_point("epoch", "0", 3)
        for epoch in (1, 2):
            with pytest.raises(PlantedError):
                fault_point("epoch", "1", epoch)
        fault_point("epoch", "10", 1)
        assert not fault_point("checkpoint-due", "0")
    with planted("worker-reused/3:raise@2"):
        fault_point("worker-reused", "1")
        fault_point("worker-reused", "3")
        with pytest.raises(PlantedError):
            fault_point("worker-reused", "3")
    with planted("checkpoint-due:force@*"):
        assert fault_point("checkpoint-due", "0")
    fault_point("epoch", "1", 1)


def test_processes_that_share_a_folder_count_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    with planted("worker-reused:raise@2"):
        fault_point("worker-reused")
    with planted("worker-reused:raise@2"), pytest.raises(PlantedError):  # as in another process
        fault_point("worker-reused")
    with planted("worker-reused:raise@2"):
        fault_point("worker-reused")
    lines = [line.split()[1:] for line in (tmp_path / JOURNAL).read_text().splitlines()]
    assert lines == [["worker-reused", "-", str(n)] for n in (1, 2, 3)]


def test_a_gate_waits_until_it_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path))
    passed: list[tuple[str, int]] = []

    def epochs(trial: str) -> None:
        for epoch in (1, 2, 3):
            fault_point("epoch", trial, epoch)
            passed.append((trial, epoch))

    def allow(**limits: object) -> None:
        part = tmp_path / "gate.part"
        part.write_text(json.dumps({"total": 99, "each": 99, "subjects": {}, **limits}))
        part.replace(tmp_path / "gate.json")

    def wait_for(count: int) -> None:
        deadline = time.monotonic() + 20
        while len(passed) < count:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.15)
        assert len(passed) == count

    with planted("epoch:gate@*"):
        threads = [threading.Thread(target=epochs, args=(t,), daemon=True) for t in "01"]
        for thread in threads:
            thread.start()
        wait_for(0)
        assert (tmp_path / "waiting-epoch").exists()
        allow(each=1)
        wait_for(2)
        allow(each=1, subjects={"1": 2})
        wait_for(3)
        assert sorted(passed) == [("0", 1), ("1", 1), ("1", 2)]
        allow(total=4)
        wait_for(4)
        allow()
        for thread in threads:
            thread.join(20)
    assert sorted(passed) == [(t, n) for t in "01" for n in (1, 2, 3)]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("trial-endet", "unknown point 'trial-endet': did you mean 'trial-ended'?; all points: "),
        ("epoch:explode", f"unknown action 'explode': one of {', '.join(ACTIONS)}"),
        ("epoch@0", "'epoch@0' is not POINT"),
        ("epoch;rm", "'epoch;rm' is not POINT"),
        ("epoch:gate", f"'epoch:gate' needs ${FOLDER}"),
    ],
)
def test_what_cannot_be_meant_is_refused(spec: str, said: str) -> None:
    with pytest.raises(UserError) as caught, planted(spec):
        pass
    assert said in str(caught.value)


def test_a_command_refuses_an_unknown_point() -> None:
    outcome = command("synth", "--help", env={VARIABLE: "trial-ended"})
    assert outcome.code == 0
    outcome = command("synth", "x", env={VARIABLE: "no-such-point"})
    assert (outcome.code, outcome.out) == (2, "")
    (line,) = outcome.err.splitlines()
    assert line.startswith(f"error: ${VARIABLE}: unknown point 'no-such-point'")
    assert all(name in line for name in POINTS)


def test_without_a_fault_a_point_does_not_look_at_what_is_planted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The variable is not read at a point, and no point is counted."""
    monkeypatch.setattr(fault_points, "_planted", None)
    monkeypatch.setattr(fault_points, "_reach", pytest.fail)
    assert fault_point("training-step") is False
