"""The driver is killed at every kind of moment; the same command resumes, and nothing is lost.

The search runs in a fork without Ray, so that each moment costs seconds; three of the moments are
repeated with Ray and workers of their own.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from support.counted import check_counted_once, ended_runs
from support.fault_log import THOROUGH, survived
from support.gates import passes
from support.inline import search_inline, start_inline
from support.searches import command, search, start, study, summary, wait_for

from resp_tune.common.fault_points import FOLDER, VARIABLE

EPOCHS, TRIALS = 2, 4
SMALL = (
    "--space", "search_spaces/smoke.yaml", "--gpus", "0", "--scheduler", "none",
)  # fmt: skip
ARGS = (
    *SMALL, "--concurrency", "2", "--epochs", str(EPOCHS), "--trials", str(TRIALS),
    "--replicates", "2", "--name", "often",
)  # fmt: skip

MOMENTS = [
    # start-up
    "study-opens", "study-created", "split-saves", "mlflow-opened", "mlflow-search-run",
    # filling the cache
    "cache-append@5", "cache-finished",
    # before the first trial
    "sanity-checked",
    # trials
    "trial-asked", "trial-handed-out", "trial-advances", "trial-ends", "trial-ended",
    "mlflow-trial-created", "mlflow-trial-ended", "trial-ended@2",
    # replicates
    "trial-handed-out/0/replicates/1", "trial-ended/1/replicates/2",
    # the end: tables, bundle, test set, the summary, the evaluation's MLflow run, the registry
    "trials-table", "bundle-written", "test-access", "test-scored", "summary-writes",
    "report-writes", "mlflow-evaluation", "model-logged", "model-registered",
]  # fmt: skip
# MLflow is written in the background: where nothing holds the trials, they can all have ended by
# then, and one search has no moment of a trial left.
HELD = {"mlflow-trial-created": "epoch:hang@*", "mlflow-trial-ended": "trial-ended:hang"}
ON_RAY = ("trial-asked", "trial-advances", "model-logged")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("killed") / "data"
    made = command("synth", str(folder), "--recordings", "40", "--seconds", "4")
    assert made.code == 0, made.err
    return folder


def own_store(storage: Path) -> tuple[str, str]:
    """Let the search make the tables of its MLflow store, which others are given ready."""
    return "--tracking-uri", f"sqlite:///{storage}/mlflow.db"


def killed_at(moment: str, storage: Path, *args: str, scratch: Path) -> None:
    """Run a search in a fork until it is killed at `moment`; the cache is empty if it is of one."""
    env = {VARIABLE: moment}
    if moment.startswith("cache"):
        env["RESP_TUNE_CACHE"] = str(scratch / "empty")
    outcome = search_inline(storage, *args, env=env)
    assert outcome.code == -signal.SIGKILL, f"{moment}: {outcome.err}"
    assert "Traceback" not in outcome.err


# In `.ci/run` a third of the moments comes in one search, three with Ray, the others alone.
IN_TURN = MOMENTS[::3]


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(m, marks=pytest.mark.thorough) if m in (*IN_TURN, *ON_RAY) else m
        for m in MOMENTS
    ],
)
def test_killed_at(moment: str, data: Path, tmp_path: Path) -> None:
    storage, args = tmp_path / "results", (*ARGS, "--data", str(data))
    if moment == "mlflow-opened":
        args = (*args, *own_store(storage))
    killed_at(moment, storage, *args, scratch=tmp_path)
    before = ended_runs(storage, "often")
    begun = time.monotonic()
    outcome = search_inline(storage, *args)
    took = time.monotonic() - begun
    assert outcome.code == 0, outcome.err
    check_counted_once(storage, "often", TRIALS, EPOCHS)
    assert before.items() <= ended_runs(storage, "often").items()
    survived("SIGKILL of the driver at a named moment", took)
    if moment in ("test-access", "report-writes", "model-logged"):
        accesses = summary(storage, "often")["test_readings"]
        again = search_inline(storage, *args)
        assert again.code == 0, again.err
        check_counted_once(storage, "often", TRIALS, EPOCHS)
        assert summary(storage, "often")["test_readings"] == accesses


def test_killed_in_the_second_fold(data: Path, tmp_path: Path) -> None:
    """The first fold is not trained again, and the epochs of the second one are counted on."""
    args = (*ARGS, "--data", str(data), "--folds", "2", "--trials", "2")
    env = {VARIABLE: "epoch-done/0@3,checkpoint-due:force@*"}
    outcome = search_inline(tmp_path / "r", *args, env=env)
    assert outcome.code == -signal.SIGKILL, outcome.err
    again = {VARIABLE: "epoch:note@*", FOLDER: str(tmp_path / "again")}
    (tmp_path / "again").mkdir()
    outcome = search_inline(tmp_path / "r", *args, env=again)
    assert outcome.code == 0, outcome.err
    repeated = [int(line[3]) for line in passes(tmp_path / "again") if line[2] == "0"]
    assert repeated == [4]
    check_counted_once(tmp_path / "r", "often", 2, 2 * EPOCHS)
    survived("SIGKILL of the driver in a trial's second fold")


def test_one_search_killed_again_and_again(data: Path, tmp_path: Path) -> None:
    """Each command gets further than where the one before it was killed."""
    storage = tmp_path / "results"
    args = (*ARGS, "--data", str(data), *own_store(storage))
    before: dict[str, Any] = {}
    for moment in MOMENTS if THOROUGH else IN_TURN:
        faults = f"{moment},{HELD[moment]}" if moment in HELD else moment
        killed_at(faults, storage, *args, scratch=tmp_path / "scratch")
        ended = ended_runs(storage, "often")
        assert before.items() <= ended.items()
        before = ended
    outcome = search_inline(storage, *args)
    assert outcome.code == 0, outcome.err
    check_counted_once(storage, "often", TRIALS, EPOCHS)
    survived("one search killed at many moments in turn")


def test_with_ray_and_its_workers(data: Path, tmp_path: Path) -> None:
    """Killed alone, so that its workers live on, and once with all that it has started."""
    storage, args = tmp_path / "results", (*ARGS, "--data", str(data))
    took = []
    for moment in ON_RAY:
        begun = time.monotonic()
        outcome = search(storage, *args, env={VARIABLE: moment})
        took.append(time.monotonic() - begun)
        assert outcome.code == -signal.SIGKILL, f"{moment}: {outcome.err}"
        assert "Traceback" not in outcome.err
        if moment == "trial-asked":
            kill_everything_in_mid_trial(storage, args, tmp_path)
    before = ended_runs(storage, "often")
    outcome = search(storage, *args)
    assert outcome.code == 0, outcome.err
    check_counted_once(storage, "often", TRIALS, EPOCHS)
    assert before.items() <= ended_runs(storage, "often").items()
    survived("SIGKILL of the driver at a named moment, with Ray", max(took[1:]), times=len(ON_RAY))
    survived("SIGKILL of the driver and its Ray at once")


def kill_everything_in_mid_trial(storage: Path, args: tuple[str, ...], folder: Path) -> None:
    env = {VARIABLE: "epoch-done:note@*,epoch:hang@2", FOLDER: str(folder)}
    running = start("search", "--storage", str(storage), *args, env=env)
    wait_for(lambda: len(passes(folder)) >= 2)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()


def test_two_at_once_and_a_dead_holder(data: Path, tmp_path: Path) -> None:
    storage, args = tmp_path / "r", (*ARGS, "--data", str(data))
    running = start_inline(storage, *args, env={VARIABLE: "trial-handed-out:hang"})
    holder = storage / "often" / ".held_by"
    wait_for(lambda: holder.exists() and holder.read_text() != "")
    begun = time.monotonic()
    second = search_inline(storage, *args)
    refused = time.monotonic() - begun
    assert second.code == 2
    assert f"is being run by process {running.pid} on" in second.err
    assert "Traceback" not in second.err
    running.kill()
    running.wait()
    assert holder.exists(), "left by the dead"
    third = search_inline(storage, *args)
    assert "is being run by" not in third.err
    assert third.code == 0, third.err
    check_counted_once(storage, "often", TRIALS, EPOCHS)
    survived("a second process of the same name, refused", refused)
    survived("a lock left by a dead process, taken over")


def test_a_killed_trial_repeats_ten_seconds_at_most(data: Path, tmp_path: Path) -> None:
    """Epochs take a third of a second; 8 s of them lie between checkpoints."""
    env = {VARIABLE: "epoch:slow@*,epoch-done:note@*", FOLDER: str(tmp_path)}
    args = (*SMALL, "--data", str(data), "--epochs", "60", "--trials", "1", "--name", "long")
    kills = (35, 50) if THOROUGH else (35,)
    for enough in kills:
        running = start_inline(tmp_path / "r", *args, env=env)
        wait_for(lambda e=enough: latest_epoch(tmp_path) >= e)  # type: ignore[misc]  # bound at once
        running.kill()
        running.wait()
    done = search_inline(tmp_path / "r", *args, env=env)
    assert done.code == 0, done.err
    done_before: set[int] = set()
    begun, repeated, epochs = 0.0, 0.0, 0
    for seconds, point, _, number in passes(tmp_path):
        if point == "epoch":
            begun = float(seconds)
            continue
        epochs += 1
        if int(number) in done_before:
            repeated += float(seconds) - begun
        done_before.add(int(number))
    assert done_before == set(range(1, 61))
    assert epochs > 60, "something must have been repeated, or the test kills too late"
    assert repeated <= len(kills) * 10.0, "10 s for each kill"
    assert [len(t.intermediate_values) for t in study(tmp_path / "r", "long").get_trials()] == [60]
    survived("SIGKILL of the driver in mid-trial, 10 s repeated at most", times=len(kills))


def latest_epoch(folder: Path) -> int:
    done = [int(line[3]) for line in passes(folder) if line[1] == "epoch-done"]
    return done[-1] if done else 0
