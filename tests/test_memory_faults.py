"""Memory that is short, as the worker, Ray or the system's killer says it: half the micro-batch.

The batch stays what it was, the epochs that were told stand, and what was halved stays halved.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from support.fault_log import survived
from support.gates import epochs_done
from support.searches import search, study, trials
from support.toy_trials import rows, run, trial
from support.trial_queues import (
    SPACE,
    epochs_of,
    finish,
    next_of,
    queue_of,
    row,
    settings_of,
    study_at,
)

from resp_tune.common.fault_points import FOLDER, VARIABLE, planted
from resp_tune.execution.searcher import WORKER_RETRIES, RestartTrialsError, StudySearcher
from resp_tune.study.replicates import ReplicateSource
from resp_tune.study.study import records
from resp_tune.study.trial_queue import TrialQueue

MONITOR = (
    "ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.\n"
    "Memory on the node (IP: 127.0.0.1, ID: 4afd) was 23.00GB / 24.00GB (0.958333)"
)
KILLER = "ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task."


def replicates_of(folder: Path) -> TrialQueue:
    """Two replicates to run of the only trial, which is made where it is missing."""
    opened = study_at(folder)
    if not opened.trials:
        queue = queue_of(opened, budget=1)
        finish(queue, next_of(queue)["key"].number, 0.5)
    return TrialQueue(ReplicateSource(opened, records(opened, SPACE), settings_of(), 2))


def trials_of(folder: Path) -> TrialQueue:
    return queue_of(study_at(folder), budget=1)


KINDS = pytest.mark.parametrize("runs_of", [trials_of, replicates_of])


def handed_out(searcher: StudySearcher, name: str) -> dict[str, Any]:
    config = searcher.suggest(name)
    assert isinstance(config, dict)
    return config


@KINDS
@pytest.mark.parametrize(
    ("losses", "error", "halved"),
    [(1, MONITOR, True), (1, KILLER, False), (2, KILLER, True), (2, MONITOR, True)],
)
def test_a_worker_lost_for_lack_of_memory(
    runs_of: Any, losses: int, error: str, halved: bool, tmp_path: Path, said: list[str]
) -> None:
    """The system's own killer says nothing: whoever is lost twice is taken to be too large."""
    searcher = StudySearcher(runs_of(tmp_path), lambda: 1)
    begun = handed_out(searcher, "ray's")["config"]
    config = searcher.config_after_loss("ray's", losses, error)
    half = begun.batch_size // 2
    assert config == begun.replace({"micro_batch": half if halved else None})
    assert (f"resumes from its checkpoint with micro_batch {half}" in said[0]) == halved
    assert ("(out of memory)" in said[0]) == (error == MONITOR)


@KINDS
@pytest.mark.parametrize("losses", [0, 1, 2])
def test_a_trial_that_ray_gives_up_early_is_handed_out_anew(
    runs_of: Any, losses: int, tmp_path: Path
) -> None:
    """As it does where the worker died before the trial had begun there."""
    searcher = StudySearcher(runs_of(tmp_path), lambda: 1)
    begun = handed_out(searcher, "ray's")
    for loss in range(losses):
        searcher.config_after_loss("ray's", loss + 1, "")
    searcher.on_trial_complete("ray's", error=True)
    assert isinstance(searcher.fatal_error, RestartTrialsError)
    again = handed_out(StudySearcher(runs_of(tmp_path), lambda: 1), "another")
    assert again["key"] == begun["key"]


def test_a_trial_whose_workers_die_again_and_again_has_failed(tmp_path: Path) -> None:
    searcher = StudySearcher(trials_of(tmp_path), lambda: 1)
    handed_out(searcher, "ray's")
    for loss in range(WORKER_RETRIES):
        searcher.config_after_loss("ray's", loss + 1, "")
    searcher.on_trial_complete("ray's", error=True)
    assert searcher.fatal_error is None
    (told,) = records(study_at(tmp_path), SPACE)
    assert (told.state, told.error) == ("failed", "its worker died 4 times")


@KINDS
def test_at_the_smallest_micro_batch_a_lost_worker_changes_nothing(
    runs_of: Any, tmp_path: Path, said: list[str]
) -> None:
    searcher = StudySearcher(runs_of(tmp_path), lambda: 1)
    handed_out(searcher, "ray's")
    sizes = [searcher.config_after_loss("ray's", 1, MONITOR).micro_batch for _ in range(8)]
    assert sizes[-2:] == [2, 2]
    assert "with micro_batch" not in said[-1]


@KINDS
def test_what_was_halved_stays_so_when_the_search_is_continued(
    runs_of: Any, tmp_path: Path
) -> None:
    queue = runs_of(tmp_path)
    begun = next_of(queue)
    queue.advance(begun["key"], [row(1, 0.1)], 4)
    queue = runs_of(tmp_path)  # the driver was killed
    again = next_of(queue)
    assert again["key"] == begun["key"]
    assert again["config"] == begun["config"].replace({"micro_batch": 4})
    assert epochs_of(queue, again["key"]) == 1


def test_epochs_that_were_told_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of memory in the second epoch: the first is not run or told again, if it was saved."""
    whole = run(trial(tmp_path / "whole"))
    monkeypatch.setattr("resp_tune.execution.trainable.REPORT_SECONDS", 0.0)
    made = trial(tmp_path / "short")
    with planted("checkpoint-due:force@*"):
        first = made.step()
    assert first["micro_batch"] is None
    with planted("checkpoint-due:force@*,training-step:out-of-memory"):
        second, third = made.step(), made.step()
    assert (second["micro_batch"], third["micro_batch"]) == (4, 4)
    assert "out of memory, continues with micro_batch 4" in second["message"]
    assert third["done"]
    told = rows([first, second, third])
    assert [r["epoch"] for r in told] == [1, 2, 3]
    assert told[0] == rows(whole)[0]
    assert told[1] != rows(whole)[1], "the batch statistics are of 4 items, not of 8"
    resumed = trial(tmp_path / "short", micro_batch=4)
    assert rows(run(resumed)) == told
    assert [r.row()["train_loss"] for r in resumed.training.history] == [
        r["train_loss"] for r in told
    ]


LEAST_FREE = 8e9
SPARE = 0.4  # of what is free, which others may take meanwhile


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_rays_memory_monitor_ends_a_worker(tmp_path: Path) -> None:
    memory = psutil.virtual_memory()
    if memory.available < LEAST_FREE:
        pytest.skip("too little memory is free here to use some of it up")
    used = memory.total - memory.available + SPARE * memory.available
    env = {
        VARIABLE: "epoch/0:use-memory@3,epoch-done:note@*,checkpoint-due:force@*",
        FOLDER: str(tmp_path),
        "RAY_memory_usage_threshold": f"{used / memory.total:.4f}",
        "RAY_memory_monitor_refresh_ms": "100",
    }
    begun = time.monotonic()
    outcome = search(
        tmp_path, "--space", "search_spaces/smoke.yaml", "--gpus", "0", "--scheduler", "none",
        "--epochs", "4", "--trials", "2", "--concurrency", "1", "--name", "hog", env=env,
        timeout=800,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    assert "trial 0: its worker was lost (out of memory); it resumes" in outcome.err
    assert "Traceback" not in outcome.err
    assert list(trials(tmp_path, "hog")["state"]) == ["finished", "finished"]
    config = study(tmp_path, "hog").get_trials()[0].user_attrs["config"]
    half = config["batch_size"] // 2
    assert config["micro_batch"] == half
    of_first = [line for line in epochs_done(tmp_path) if line.startswith("0 ")]
    assert of_first == ["0 1", "0 2", "0 3", "0 4"], "none is repeated"
    survived("Ray's memory monitor ended a worker", time.monotonic() - begun)
