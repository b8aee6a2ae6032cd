"""What goes wrong inside one trial ends that trial truly; the search goes on."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import mlflow
import pytest
from optuna.trial import TrialState
from support.fault_log import survived
from support.inline import search_inline
from support.searches import command, files_below, search, study, trials
from support.toy_trials import rows, run, trial

from resp_tune.common.fault_points import FOLDER, VARIABLE, planted
from resp_tune.execution.watchdog import STACK_FILE, TrialWatchdog
from resp_tune.tracking.load_trial import load_trial_run

SMALL = ("--space", "search_spaces/smoke.yaml", "--gpus", "0", "--scheduler", "none")


# A trial that takes too long


HANG = """
    import sys, time
    from pathlib import Path
    from resp_tune.execution import watchdog as timeouts
    timeouts.MARGIN_SECONDS = 0.0
    watch = timeouts.TrialWatchdog(Path(sys.argv[1]), "first", 0.5)
    {then}
    time.sleep(60)
"""


def process(folder: Path, then: str = "") -> subprocess.CompletedProcess[str]:
    code = textwrap.dedent(HANG).format(then=then)
    return subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False
    )


def test_a_call_that_never_returns_ends_its_process(tmp_path: Path) -> None:
    started = time.monotonic()
    done = process(tmp_path)
    assert time.monotonic() - started < 30
    assert done.returncode == 1
    assert "sleep" not in done.stderr
    assert "line" in (tmp_path / STACK_FILE).read_text(), "where it stood"
    again = TrialWatchdog(tmp_path, "first", 0.5)
    assert again.expired_before
    assert again.expired
    assert "longer than --trial-timeout (0.5 s) inside one epoch" in str(again)
    later = TrialWatchdog(tmp_path, "second", 5.0)  # handed out once more
    assert not later.expired_before
    assert not later.expired
    later.stop()
    assert files_below(tmp_path) == set()


def test_a_trial_that_ends_in_time_is_not_ended_later(tmp_path: Path) -> None:
    done = process(tmp_path, "watch.stop(); time.sleep(1.5); sys.exit(7)")
    assert done.returncode == 7
    assert files_below(tmp_path) == set()


def test_a_killed_worker_is_no_timeout(tmp_path: Path) -> None:
    done = process(tmp_path, "import os; os.kill(os.getpid(), 9)")
    assert done.returncode == -9
    assert not TrialWatchdog(tmp_path, "first", None).expired_before


def test_a_slow_trial_ends_after_an_epoch(tmp_path: Path) -> None:
    made = trial(tmp_path, timeout=0.0)
    result = made.step()
    assert result["done"]
    assert "longer than --trial-timeout (0 s)" in result["error"]
    assert not (made.folder / STACK_FILE).exists()


def test_a_trial_that_is_stopped_from_outside_is_no_longer_watched(tmp_path: Path) -> None:
    made = trial(tmp_path, timeout=60.0)
    made.context = replace(made.context, rungs=(1,))
    assert not made.step()["done"]
    assert (made.folder / STACK_FILE).exists()
    made.cleanup()  # as Ray does when the scheduler has stopped it
    assert not (made.folder / STACK_FILE).exists()


@pytest.mark.slow
def test_a_hanging_trial_fails_and_the_search_goes_on(tmp_path: Path) -> None:
    env = {VARIABLE: "epoch/0:hang@2"}
    outcome = search(
        tmp_path, *SMALL, "--trials", "3", "--epochs", "2", "--trial-timeout", "20s",
        "--name", "hangs", env=env,
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    table = trials(tmp_path, "hangs")
    assert list(table["state"]) == ["failed", "finished", "finished"]
    told = study(tmp_path, "hangs").get_trials()[0]
    assert told.state == TrialState.FAIL
    assert "longer than --trial-timeout (20 s) inside one epoch" in told.user_attrs["error"]
    assert "planted" not in outcome.err
    trace = (tmp_path / "hangs" / "trials" / "0" / STACK_FILE).read_text()
    assert "_run_epochs" in trace
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    assert client.get_run(table["mlflow_run_id"][0]).info.status == "FAILED"
    survived("a trial that hangs, --trial-timeout")


# An exception


@pytest.mark.slow
def test_an_exception_in_one_configuration(tmp_path: Path) -> None:
    env = {VARIABLE: "epoch/0:raise"}
    outcome = search_inline(
        tmp_path, *SMALL, "--trials", "3", "--epochs", "1", "--name", "one", env=env
    )
    assert outcome.code == 0, outcome.err
    table = trials(tmp_path, "one")
    assert list(table["state"]) == ["failed", "finished", "finished"]
    told = study(tmp_path, "one").get_trials()[0]
    assert (told.state, told.value) == (TrialState.FAIL, None)
    assert told.user_attrs["error"] == "PlantedError: planted in two lines"
    assert "in _run_epochs" in (tmp_path / "one" / "trials" / "0" / "error.txt").read_text()
    assert "Traceback" not in outcome.err
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    run = client.get_run(table["mlflow_run_id"][0])
    assert (run.info.status, run.data.tags["resp_tune.state"]) == ("FAILED", "failed")
    survived("an exception in one configuration")


@pytest.mark.slow
def test_an_exception_in_every_configuration(tmp_path: Path) -> None:
    """The sanity check, which trains without epochs, does not see it: the first trials do."""
    env = {VARIABLE: "epoch:raise@*"}
    outcome = search_inline(
        tmp_path, *SMALL, "--trials", "9", "--epochs", "1", "--name", "all", env=env
    )
    assert outcome.code == 1
    (error,) = [line for line in outcome.err.splitlines() if line.startswith("error:")]
    assert "no trial finished; trial 0 failed with: PlantedError: planted in two lines" in error
    assert "Traceback" not in outcome.err
    states = list(trials(tmp_path, "all")["state"])
    assert set(states) == {"failed"}
    assert len(states) < 9, "it has given up"
    again = search_inline(tmp_path, *SMALL, "--trials", "9", "--epochs", "1", "--name", "all")
    assert again.code == 0, again.err  # mended: the rest is run
    after = list(trials(tmp_path, "all")["state"])
    assert after == states + ["finished"] * (9 - len(states))
    survived("an exception in every configuration")


# Memory


def test_without_memory_the_micro_batch_is_halved(tmp_path: Path) -> None:
    """The batch of 8 becomes two of 4: the gradients add up, the batch statistics differ."""
    whole = rows(run(trial(tmp_path / "given", micro_batch=4)))
    with planted("training-step:out-of-memory@2"):
        results = run(trial(tmp_path / "short"))
    assert {r["micro_batch"] for r in results} == {4}
    assert "micro_batch 4" in results[0]["message"]
    assert not any(r["diverged"] for r in results)
    assert rows(results) == whole


def test_at_the_smallest_micro_batch_a_trial_has_diverged(tmp_path: Path) -> None:
    with planted("training-step:out-of-memory@*"):
        result = trial(tmp_path).step()
    assert (result["done"], result["diverged"]) == (True, True)
    assert result["micro_batch"] == 2
    assert result["error"] == "MemoryError: planted"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory as Linux does")
def test_memory_that_is_really_short(tmp_path: Path) -> None:
    """In 300 MB beyond what torch takes, 18 clips of ten minutes are too many at once."""
    code = """
    import resource, sys
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    import torch
    from support.toy_trials import run, trial
    run(trial(Path(sys.argv[1]) / "first", epochs=1))  # whatever is loaded late is there now
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 300_000_000,) * 2)
    made = trial(Path(sys.argv[1]), epochs=1, batch_size=32, width=16, clip_seconds=600.0)
    results = [made.step()]
    print(results[-1]["error"], file=sys.stderr)
    print(results[-1]["micro_batch"], results[-1]["diverged"], results[-1]["epoch"])
    """
    script = textwrap.dedent(code).format(tests=str(Path(__file__).parent))
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    size, diverged, epoch = done.stdout.split()
    assert 2 <= int(size) < 18
    assert (diverged, epoch) == ("False", "1"), done.stderr
    survived("not enough memory (RLIMIT_AS)")


@pytest.mark.slow
def test_a_halved_micro_batch_is_recorded_everywhere(tmp_path: Path) -> None:
    env = {VARIABLE: "epoch/0:out-of-memory", FOLDER: str(tmp_path)}
    args = (*SMALL, "--epochs", "1", "--name", "short")
    outcome = search_inline(tmp_path, *args, "--trials", "2", env=env)
    assert outcome.code == 0, outcome.err
    found = re.search(r"out of memory, continues with micro_batch (\d+)\n", outcome.err)
    assert found is not None, outcome.err
    size = int(found[1])
    table = trials(tmp_path, "short")
    assert list(table["state"]) == ["finished", "finished"]
    configs = [t.user_attrs["config"] for t in study(tmp_path, "short").get_trials()]
    assert [c["micro_batch"] for c in configs] == [size, None]
    assert size < configs[0]["batch_size"]
    assert configs[0]["batch_size"] == configs[1]["batch_size"]
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    params = [client.get_run(run_id).data.params for run_id in table["mlflow_run_id"]]
    assert [p["micro_batch"] for p in params] == ["None", "None"], "what was asked for"
    tags = [client.get_run(run_id).data.tags for run_id in table["mlflow_run_id"]]
    assert [t.get("resp_tune.micro_batch") for t in tags] == [str(size), None]
    run_id, uri = table["mlflow_run_id"][0], f"sqlite:///{tmp_path / 'mlflow.db'}"
    assert load_trial_run(uri, run_id).config["micro_batch"] == size
    assert not list((tmp_path / "short" / "trials").rglob("error.txt")), "nothing has failed"
    survived("out of memory in a training step")


def test_storage_that_is_away_ends_no_trial(tmp_path: Path) -> None:
    (tmp_path / "3").write_text("where the folder of trial 3 was")
    made = trial(tmp_path, epochs=2)
    result = made.step()
    assert "cannot be written" in result["fatal_error"]
    assert (result["error"], result["diverged"]) == (None, False)
    (tmp_path / "3").unlink()
    assert run(trial(tmp_path, epochs=2))[-1]["done"]


# A bug


@pytest.mark.slow
def test_of_two_failures_both_are_told(tmp_path: Path) -> None:
    """The cache cannot be filled, and MLflow's runs cannot be opened."""
    data = tmp_path / "data"
    assert command("synth", str(data), "--recordings", "40", "--seconds", "4").code == 0
    env = {
        VARIABLE: "mlflow-opens:raise,cache-append:disk-full",
        "RESP_TUNE_CACHE": str(tmp_path / "c"),
    }
    outcome = search_inline(tmp_path, *SMALL, "--data", str(data), "--name", "two", env=env)
    assert outcome.code in (1, 2)
    (error,) = [line for line in outcome.err.splitlines() if line.startswith("error:")]
    (warning,) = [line for line in outcome.err.splitlines() if line.startswith("warning:")]
    assert "disk full" in error
    assert "MLflow's runs could not be opened either: planted" in warning
    assert "Traceback" not in outcome.err
