"""One batch of the baseline before any trial: in the driver, or where a trial would be."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from support.fault_log import survived
from support.inline import use_inline_backend
from support.searches import search, study, trials
from support.toy import toy_config
from support.toy_trials import context
from support.warm import WarmProcess

from resp_tune.cluster.resources import LOGICAL_GPUS, TrialResources
from resp_tune.common.fault_points import VARIABLE
from resp_tune.errors import RunError
from resp_tune.execution import sanity_check

CPU = TrialResources(concurrency=1, cpus=1, gpus=0.0, threads=1)
ARGS = ("--space", "search_spaces/smoke.yaml", "--epochs", "1", "--trials", "1", "--name", "sanity")


def check(folder: Path, timeout: float | None) -> None:
    sanity_check.check_baseline(context(folder, timeout=timeout), CPU, toy_config(), folder)


@pytest.mark.parametrize("timeout", [None, 60.0])
def test_a_batch_that_works_leaves_nothing(tmp_path: Path, timeout: float | None) -> None:
    check(tmp_path, timeout)
    assert not (tmp_path / sanity_check.TRACE_FILE).exists()


@pytest.mark.parametrize("timeout", [None, 60.0])
def test_a_batch_that_fails(
    tmp_path: Path, timeout: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(sanity_check, "start_training", fails)
    with pytest.raises(RunError, match="no trial was started: ZeroDivisionError: planted"):
        check(tmp_path, timeout)
    assert "in fails" in (tmp_path / sanity_check.TRACE_FILE).read_text()


def test_a_batch_that_hangs_ends_with_where_it_stood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hangs(*_: Any) -> Any:
        time.sleep(30)

    monkeypatch.setattr(sanity_check, "start_training", hangs)
    monkeypatch.setattr(sanity_check, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(sanity_check, "MARGIN_SECONDS", 0.0)
    begun = time.monotonic()
    with pytest.raises(RunError, match=r"it took longer than --trial-timeout \(0.2 s\)"):
        check(tmp_path, 0.2)
    assert time.monotonic() - begun < 25
    assert "in hangs" in (tmp_path / sanity_check.TRACE_FILE).read_text()


def hurry() -> None:
    """Let this process, a fork, give the batch no more than `--trial-timeout`."""
    sanity_check.MIN_SECONDS, sanity_check.MARGIN_SECONDS = 0.0, 0.0


def hurry_inline() -> None:
    hurry()
    use_inline_backend()


BUG = ("training-step:raise", "300s", "PlantedError: planted in two lines", "in _step")
HANG = ("training-step:hang", "8s", "it took longer than --trial-timeout (8 s)", "--trial-timeout")
HANG_HERE = (*HANG[:3], "in try_one_batch")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gpus", "inline", "fault", "timeout", "message", "trace"),
    [
        ("0", True, *HANG_HERE),
        ("1", False, *BUG),
        pytest.param("0", True, *BUG, marks=pytest.mark.thorough),
        pytest.param("1", False, *HANG, marks=pytest.mark.thorough),
        pytest.param("0", False, *BUG, marks=pytest.mark.thorough),
        pytest.param("0", False, *HANG_HERE, marks=pytest.mark.thorough),
    ],
)
def test_where_a_trial_would_run(
    gpus: str, inline: bool, fault: str, timeout: str, message: str, trace: str, tmp_path: Path
) -> None:
    """In the driver on the CPU; in a worker where a trial is given a GPU, a logical one here."""
    env = {LOGICAL_GPUS: "1"}
    args = ("--storage", str(tmp_path), *ARGS, "--gpus", gpus, "--trial-timeout", timeout)
    err = tmp_path / "err"
    broken = WarmProcess(
        "search", args, env={**env, VARIABLE: fault}, err=str(err),
        prepare=hurry_inline if inline else hurry,
    )  # fmt: skip
    assert broken.wait(300) == 1, err.read_text()
    said = err.read_text()
    (error,) = [line for line in said.splitlines() if line.startswith("error:")]
    assert f"no trial was started: {message}" in error
    assert "Traceback" not in said
    assert trace in (tmp_path / "sanity" / sanity_check.TRACE_FILE).read_text()
    assert not study(tmp_path, "sanity").get_trials()
    if (gpus, fault) == ("1", BUG[0]):
        mended = search(tmp_path, *ARGS, "--gpus", gpus, env=env)
        assert mended.code == 0, mended.err
        assert list(trials(tmp_path, "sanity")["state"]) == ["finished"]
    survived("a bug or a hang in the code, found by the sanity check")
