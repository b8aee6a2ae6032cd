"""One batch of the baseline before any trial: in the driver, or where a trial would be."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from support import faults
from support.fault_log import survived
from support.searches import search, study, trials
from support.toy import toy_config
from support.toy_trials import work

from resp_tune.cluster.resources import LOGICAL_GPUS, TrialResources
from resp_tune.errors import RunError
from resp_tune.execution import sanity_check

CPU = TrialResources(concurrency=1, cpus=1, gpus=0.0, threads=1)
HANGS = """
    import time
    def rehearse(self):
        time.sleep(10_000)
    training.Training.rehearse = rehearse
"""
ARGS = ("--space", "search_spaces/smoke.yaml", "--epochs", "1", "--trials", "1", "--name", "canary")


def check(folder: Path, timeout: float | None) -> None:
    sanity_check.check_baseline(work(folder, timeout=timeout), CPU, toy_config(), folder)


@pytest.mark.parametrize("timeout", [None, 60.0])
def test_a_batch_that_works_leaves_nothing(tmp_path: Path, timeout: float | None) -> None:
    check(tmp_path, timeout)
    assert not (tmp_path / sanity_check.TRACE).exists()


@pytest.mark.parametrize("timeout", [None, 60.0])
def test_a_batch_that_fails(
    tmp_path: Path, timeout: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(sanity_check, "begin_training", fails)
    with pytest.raises(RunError, match="no trial was started: ZeroDivisionError: planted"):
        check(tmp_path, timeout)
    assert "in fails" in (tmp_path / sanity_check.TRACE).read_text()


def test_a_batch_that_hangs_ends_with_where_it_stood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hangs(*_: Any) -> Any:
        time.sleep(30)

    monkeypatch.setattr(sanity_check, "begin_training", hangs)
    monkeypatch.setattr(sanity_check, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(sanity_check, "MARGIN_SECONDS", 0.0)
    begun = time.monotonic()
    with pytest.raises(RunError, match=r"it took longer than --trial-timeout \(0.2 s\)"):
        check(tmp_path, 0.2)
    assert time.monotonic() - begun < 25
    assert "in hangs" in (tmp_path / sanity_check.TRACE).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("gpus", ["0", "1"])
@pytest.mark.parametrize(
    ("body", "timeout", "said", "trace"),
    [
        (faults.BUG, "300s", "ZeroDivisionError: a bug in two lines", "make_batch"),
        (HANGS, "1s", "it took longer than --trial-timeout (1 s)", "--trial-timeout"),
    ],
    ids=["bug", "hangs"],
)
def test_where_a_trial_would_run(
    gpus: str, body: str, timeout: str, said: str, trace: str, tmp_path: Path
) -> None:
    """In the driver on the CPU; in a worker where a trial is given a GPU, a logical one here."""
    env = {LOGICAL_GPUS: "1"}
    outcome = search(
        tmp_path, *ARGS, "--gpus", gpus, "--trial-timeout", timeout,
        env={**env, **faults.planted(tmp_path, body)},
    )  # fmt: skip
    assert outcome.code == 1, outcome.err
    (error,) = [line for line in outcome.err.splitlines() if line.startswith("error:")]
    assert f"no trial was started: {said}" in error
    assert "Traceback" not in outcome.err
    if gpus == "0" and body == HANGS:
        trace = "in rehearse"
    assert trace in (tmp_path / "canary" / sanity_check.TRACE).read_text()
    assert not study(tmp_path, "canary").get_trials()
    if gpus == "1":
        mended = search(tmp_path, *ARGS, "--gpus", gpus, env=env)
        assert mended.code == 0, mended.err
        assert list(trials(tmp_path, "canary")["state"]) == ["finished"]
    survived("a bug or a hang in the code, found by the canary")
