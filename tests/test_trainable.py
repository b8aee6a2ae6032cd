"""What a trial does with the GPU that it was promised."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from resp_tune.tuning.trainable import LOGICAL_GPUS, TrialTrainable, Work


def trial(*, wants_gpu: bool) -> TrialTrainable:
    made = TrialTrainable.__new__(TrialTrainable)  # without Ray around it
    made.work = Work((), {}, Path("none"), "macro_f1", (), threads=1, wants_gpu=wants_gpu)
    return made


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU to give")
def test_a_trial_that_finds_no_gpu_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LOGICAL_GPUS, raising=False)
    with pytest.raises(RuntimeError, match="promised a GPU"):
        trial(wants_gpu=True)._device()
    assert trial(wants_gpu=False)._device() == "cpu"


def test_a_rehearsal_runs_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LOGICAL_GPUS, "1")
    assert trial(wants_gpu=True)._device() == "cpu"
