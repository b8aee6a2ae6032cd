"""The searcher between Ray Tune and the queue, called as Ray Tune calls it; no process is started.

What it does when memory is short is in tests/test_memory_faults.py.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.trial_queues import SPACE, epochs_of, queue_of, row, study_at

from resp_tune.common.trial_key import TrialKey
from resp_tune.errors import RunError
from resp_tune.execution.searcher import (
    NODE_LOST,
    WORKER_RETRIES,
    RestartTrialsError,
    StudySearcher,
    StudyStopper,
    WorkerFailureCallback,
)
from resp_tune.study.study import TrialRecord, records
from resp_tune.study.trial_queue import TrialQueue


def result(epochs: int, *, since: int = 0, **values: Any) -> dict[str, Any]:
    """What a worker reports after `epochs` epochs; it has reported those up to `since`."""
    return {
        "epoch": epochs,
        "epochs": [row(epoch, epoch / 10) for epoch in range(since + 1, epochs + 1)],
        "diverged": False,
        "error": None,
        "fatal_error": None,
        "micro_batch": None,
        "message": None,
    } | values


@pytest.fixture
def queue(tmp_path: Path) -> TrialQueue:
    return queue_of(study_at(tmp_path), budget=3)


@pytest.fixture
def searcher(queue: TrialQueue) -> StudySearcher:
    return StudySearcher(queue, lambda: 2)


def trials(folder: Path) -> list[TrialRecord]:
    return records(study_at(folder), SPACE)


# Suggesting


def test_no_more_trials_are_suggested_than_the_capacity_allows(queue: TrialQueue) -> None:
    capacity = [2]
    searcher = StudySearcher(queue, lambda: capacity[0])
    assert [type(searcher.suggest(name)) for name in "abc"] == [dict, dict, type(None)]
    capacity[0] = 3
    assert isinstance(searcher.suggest("c"), dict)
    capacity[0] = 1
    searcher.on_trial_complete("a", result(3))
    assert searcher.suggest("d") is None, "two still run"


def test_the_search_finishes_when_the_queue_is_empty(searcher: StudySearcher) -> None:
    searcher.suggest("a")
    searcher.suggest("b")
    searcher.on_trial_complete("a", result(3))
    assert isinstance(searcher.suggest("c"), dict)
    searcher.on_trial_complete("b", result(3))
    assert searcher.suggest("d") == StudySearcher.FINISHED


def test_a_suggestion_that_fails_stops_the_search(
    queue: TrialQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails() -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(queue, "next_trial", fails)
    searcher = StudySearcher(queue, lambda: 2)
    assert searcher.suggest("a") == StudySearcher.FINISHED
    assert str(searcher.fatal_error) == "the disk is full"
    assert StudyStopper(searcher).stop_all()


# Results


def test_reported_epochs_are_recorded_once(
    searcher: StudySearcher, queue: TrialQueue, tmp_path: Path
) -> None:
    searcher.suggest("a")
    searcher.on_trial_result("a", result(1))
    searcher.on_trial_result("a", result(2, since=1))
    searcher.on_trial_result("a", result(2))  # another worker took over and reports from the start
    assert epochs_of(queue, TrialKey(0)) == 2
    (trial,) = trials(tmp_path)
    assert [r["epoch"] for r in trial.epochs] == [1, 2]
    assert trial.state is None


def test_a_message_is_logged(searcher: StudySearcher, said: list[str]) -> None:
    searcher.suggest("a")
    searcher.on_trial_result("a", result(1, message="trial 0: something happened"))
    assert said == ["trial 0: something happened"]


def test_a_fatal_error_keeps_the_epochs_and_leaves_the_trial_running(
    searcher: StudySearcher, tmp_path: Path
) -> None:
    searcher.suggest("a")
    searcher.on_trial_result("a", result(1, fatal_error="trial 0: no space left"))
    assert isinstance(searcher.fatal_error, RunError)
    searcher.on_trial_result("a", result(2, since=1, fatal_error="later"))
    assert str(searcher.fatal_error) == "trial 0: no space left", "the first one counts"
    (trial,) = trials(tmp_path)
    assert (len(trial.epochs), trial.state) == (2, None)


def test_a_fatal_error_in_the_last_result_does_not_end_the_trial(
    searcher: StudySearcher, tmp_path: Path
) -> None:
    searcher.suggest("a")
    searcher.on_trial_complete("a", result(3, fatal_error="trial 0: no space left"))
    assert StudyStopper(searcher).stop_all()
    (trial,) = trials(tmp_path)
    assert (len(trial.epochs), trial.state) == (3, None)


def test_a_study_that_cannot_be_written_stops_the_search(
    searcher: StudySearcher, queue: TrialQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray Tune would take the exception for the trial's own, and continue with the others."""

    def fails(*_: object) -> None:
        raise OSError("the disk is full")

    searcher.suggest("a")
    monkeypatch.setattr(queue, "advance", fails)
    searcher.on_trial_result("a", result(1))
    assert str(searcher.fatal_error) == "the disk is full"


# Completion


@pytest.mark.parametrize(
    ("last", "state", "error"),
    [
        (result(3), "finished", None),
        (result(2), "pruned", None),
        (result(2, error="ValueError: x"), "failed", "ValueError: x"),
        (result(2, diverged=True), "diverged", None),
        (result(2, diverged=True, error="out of memory"), "diverged", None),
    ],
)
def test_the_end_of_a_trial(
    last: dict[str, Any], state: str, error: str | None, searcher: StudySearcher, tmp_path: Path
) -> None:
    searcher.suggest("a")
    searcher.on_trial_complete("a", last)
    assert searcher.fatal_error is None
    (trial,) = trials(tmp_path)
    assert (trial.state, trial.error) == (state, error)
    assert len(trial.epochs) == last["epoch"]
    assert searcher.keys == {}


def test_a_trial_stops_at_its_next_report_when_its_queue_says_so(
    searcher: StudySearcher, queue: TrialQueue, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    searcher.suggest("a")
    stopper = StudyStopper(searcher)
    assert not stopper("a", result(1))
    monkeypatch.setattr(queue.source, "stop_reason", lambda *_: "time budget")
    assert stopper("a", result(1))
    assert not stopper("unknown", result(1))
    assert not stopper.stop_all(), "each ends at its own report, with its epochs kept"
    searcher.on_trial_complete("a", result(1))
    (stopped,) = [t.user_attrs["stopped"] for t in study_at(tmp_path).trials]
    assert stopped == "time budget"


# Lost workers


class RayTrial(SimpleNamespace):
    """What `WorkerFailureCallback` reads and writes of Ray's trial."""

    def __init__(self, config: dict[str, Any], folder: Path) -> None:
        super().__init__(trial_id="a", config=config, num_failures=0, max_failures=WORKER_RETRIES)
        self.error_file = str(folder / "error.txt")

    def lose_worker(self, callback: WorkerFailureCallback, error: str) -> None:
        self.num_failures += 1
        with Path(self.error_file).open("a") as file:
            file.write(f"Failure # {self.num_failures}\n{error}\n")
        callback.on_trial_recover(0, [], self)  # type: ignore[arg-type]  # what it reads is there


@pytest.fixture
def ray_trial(searcher: StudySearcher, tmp_path: Path) -> RayTrial:
    config = searcher.suggest("a")
    assert isinstance(config, dict)
    return RayTrial(config, tmp_path)


def test_a_lost_node_does_not_count_against_the_trial(
    searcher: StudySearcher, ray_trial: RayTrial, said: list[str]
) -> None:
    callback = WorkerFailureCallback(searcher)
    before = ray_trial.config["config"]
    for _ in range(5):
        ray_trial.lose_worker(callback, f"the actor's {NODE_LOST}; out of memory")
    assert ray_trial.max_failures == WORKER_RETRIES + 5
    assert searcher.worker_losses == {"a": 0}
    assert ray_trial.config["config"] == before
    assert said[-1].startswith("trial 0: its node was lost")


def test_a_lost_worker_resumes_with_the_current_config(
    searcher: StudySearcher, ray_trial: RayTrial, said: list[str]
) -> None:
    callback = WorkerFailureCallback(searcher)
    before = ray_trial.config["config"]
    ray_trial.lose_worker(callback, "the worker died")
    assert ray_trial.config["config"] == before
    assert said == ["trial 0: its worker was lost; it resumes from its checkpoint"]
    ray_trial.lose_worker(callback, "the worker died")
    half = before.batch_size // 2
    assert ray_trial.config["config"] == before.replace({"micro_batch": half})
    assert said[-1].endswith(f"it resumes from its checkpoint with micro_batch {half}")


def test_a_trial_whose_worker_dies_too_often_has_failed(
    searcher: StudySearcher, ray_trial: RayTrial, tmp_path: Path
) -> None:
    callback = WorkerFailureCallback(searcher)
    for _ in range(WORKER_RETRIES):
        ray_trial.lose_worker(callback, "the worker died")
    searcher.on_trial_complete("a", error=True)
    assert searcher.fatal_error is None
    (trial,) = trials(tmp_path)
    assert (trial.state, trial.error) == ("failed", "its worker died 4 times")


# Restarting


def test_a_trial_that_ray_gives_up_too_early_restarts_ray(
    searcher: StudySearcher, tmp_path: Path
) -> None:
    """Ray counts a worker that died between two trials twice."""
    searcher.suggest("a")
    searcher.suggest("b")
    searcher.on_trial_result("b", result(2))
    searcher.on_trial_complete("a", None, error=True)
    assert isinstance(searcher.fatal_error, RestartTrialsError)
    assert [t.state for t in trials(tmp_path)] == [None, None]
    queue = queue_of(study_at(tmp_path), budget=3)
    again = StudySearcher(queue, lambda: 3)
    keys = [again.suggest(name)["key"] for name in "xyz"]  # type: ignore[index,call-overload]  # they are dicts
    assert [key.number for key in keys] == [0, 1, 2]
    assert [epochs_of(queue, key) for key in keys] == [0, 2, 0]


def test_nothing_is_pickled(searcher: StudySearcher, tmp_path: Path) -> None:
    assert searcher.__getstate__() == {}
    assert StudyStopper(searcher).__getstate__() == {}
    searcher.save(str(tmp_path / "state"))
    assert "study is the state" in (tmp_path / "state").read_text()
