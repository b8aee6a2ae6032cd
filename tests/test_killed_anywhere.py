"""The driver is killed at every kind of moment; the same command goes on, and nothing is lost.

One search is killed again and again, each time at another moment, and then finishes. What it
leaves is what a search leaves that nobody killed.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from support import deadly
from support.counted import check_counted_once
from support.deadly import Moment
from support.fault_log import THOROUGH, survived
from support.searches import search, start, study, summary, wait_for

EPOCHS = 3
TRIALS = 6
ARGS = (
    "--space", "search_spaces/smoke.yaml", "--gpus", "0", "--scheduler", "none",
    "--concurrency", "2", "--epochs", str(EPOCHS), "--trials", str(TRIALS),
    "--replicates", "2", "--name", "often",
)  # fmt: skip

MOMENTS: list[Moment] = [
    # start-up
    ("resp_tune.harness.run", "_open", "before", 1),
    ("resp_tune.study.study", "_storage", "after", 1),
    ("resp_tune.harness.run", "save_split", "before", 1),
    ("resp_tune.tracking.client", "_opened", "after", 1),
    ("resp_tune.tracking.search_run", "SearchRuns._open_parent", "after", 1),
    # filling the cache
    ("resp_tune.features.cache", "_Writer.append", "after", 5),
    ("resp_tune.features.cache", "_Writer.finish", "after", 1),
    # before the first trial
    ("resp_tune.harness.stages", "check_baseline", "after", 1),
    # trials: asked for but not described, handed out, told in part, told to MLflow, ended
    ("resp_tune.study.trial_queue", "trial_seed", "before", 1),
    ("resp_tune.study.trial_queue", "Recorder.next_trial", "after", 1),
    ("resp_tune.study.trial_queue", "Recorder.advance", "before", 1),
    ("resp_tune.study.trial_queue", "Recorder.end", "before", 1),
    ("resp_tune.study.trial_queue", "Recorder.end", "after", 1),
    ("resp_tune.tracking.trial_runs", "Children._create", "after", 1),
    ("resp_tune.tracking.trial_runs", "Children.end", "after", 1),
    ("resp_tune.study.trial_queue", "Recorder.end", "after", 2),
    # replicates
    ("resp_tune.study.replicate_queue", "ReplicateRecorder.next_trial", "after", 1),
    ("resp_tune.study.replicate_queue", "ReplicateRecorder.end", "after", 2),
    # the end: tables, bundle, the test side, the evaluation run, the registry, the summary
    ("resp_tune.harness.result_files", "write_trials", "after", 1),
    ("resp_tune.harness.finalize", "write_bundle", "after", 1),
    ("resp_tune.harness.finalize", "score_test", "before", 1),
    ("resp_tune.harness.finalize", "score_test", "after", 1),
    ("resp_tune.tracking.trial_runs", "Children.evaluation", "after", 1),
    ("resp_tune.tracking.registry", "_log", "after", 1),
    ("resp_tune.tracking.registry", "_register", "after", 1),
    ("resp_tune.harness.result_files", "write_summary", "before", 1),
    ("resp_tune.harness.finalize", "render", "before", 1),
]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_killed_at_every_kind_of_moment(tmp_path: Path) -> None:
    moments = MOMENTS if THOROUGH else MOMENTS[::2]
    storage = tmp_path / "results"
    took = []  # each command gets further than where the one before it was killed
    for moment in moments:
        env = deadly.dies(tmp_path / "deadly", moment)
        if moment[0] == "resp_tune.features.cache":  # nothing is filled twice
            env["RESP_TUNE_CACHE"] = str(tmp_path / "empty")
            shutil.rmtree(tmp_path / "empty", ignore_errors=True)
        begun = time.monotonic()
        outcome = search(storage, *ARGS, env=env)
        took.append(time.monotonic() - begun)
        assert outcome.code == -signal.SIGKILL, f"{moment}: {outcome.err}"
    begun = time.monotonic()
    last = search(storage, *ARGS)
    took.append(time.monotonic() - begun)
    assert last.code == 0, last.err
    check_counted_once(storage, "often", TRIALS, EPOCHS)
    readings = summary(storage, "often")["test_readings"]
    again = search(storage, *ARGS)
    assert again.code == 0, again.err
    assert summary(storage, "often")["test_readings"] == readings
    survived("SIGKILL of the driver at a named moment", max(took[1:]), times=len(moments))


WORK = """
    import os, time
    step = training.Training.run_epoch
    def run_epoch(self):
        begun = time.time()
        result = step(self)
        time.sleep(0.3)
        with open(os.environ["EPOCHS_DONE"], "a") as file:
            file.write(f"{self.config.seed} {len(self.history)} {begun} {time.time()}\\n")
        return result
    training.Training.run_epoch = run_epoch
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_killed_trial_repeats_ten_seconds_at_most(tmp_path: Path) -> None:
    from support import faults

    journal = tmp_path / "epochs"
    env = {**faults.planted(tmp_path, WORK), "EPOCHS_DONE": str(journal)}
    args = (*ARGS[:6], "--concurrency", "1", "--epochs", "60", "--trials", "1", "--name", "long")
    given = ("--storage", str(tmp_path / "r"), *args)
    gone_on = []
    for enough in (35, 50):  # epochs of a third of a second: 8 s of them lie between checkpoints
        begun = time.monotonic()
        told = len(journal.read_text()) if journal.exists() else 0
        running = start("search", *given, env=env)
        wait_for(lambda t=told: journal.exists() and len(journal.read_text()) > t)  # type: ignore[misc]  # bound at once
        gone_on.append(time.monotonic() - begun)
        wait_for(lambda e=enough: journal.exists() and _latest(journal) >= e)  # type: ignore[misc]  # bound at once
        os.killpg(running.pid, signal.SIGKILL)  # the worker too, which else may go on for seconds
        running.wait()
    done = search(tmp_path / "r", *args, env=env)
    assert done.code == 0, done.err
    lines = [line.split() for line in journal.read_text().splitlines()]
    assert {int(epoch) for _, epoch, _, _ in lines} == set(range(1, 61))
    repeated = sum(float(end) - float(begun) for _, epoch, begun, end in _again(lines))
    assert len(lines) > 60, "something must have been repeated, or the test kills too late"
    assert repeated <= 2 * 10.0, "10 s for each of the two kills"
    assert [len(t.intermediate_values) for t in study(tmp_path / "r", "long").get_trials()] == [60]
    survived("SIGKILL of the driver in mid-trial, 10 s repeated at most", gone_on[1], times=2)


def _latest(journal: Path) -> int:
    lines = journal.read_text().splitlines()
    return int(lines[-1].split()[1]) if lines else 0


def _again(lines: list[list[str]]) -> list[list[str]]:
    """The epochs that were done before."""
    seen: set[str] = set()
    return [line for line in lines if line[1] in seen or seen.add(line[1])]  # type: ignore[func-returns-value]  # adds and goes on
