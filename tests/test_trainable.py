"""A trial in its worker, without Ray around it: files, resuming, and the GPU it was promised."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from support.toy import CLASSES, toy_config
from support.toy_trials import CLIPS, caches, context, rows, run, trial

from resp_tune.cluster.resources import LOGICAL_GPUS
from resp_tune.features.cache import FeatureCaches
from resp_tune.training.metrics import compute_metrics


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU to give")
def test_a_trial_that_finds_no_gpu_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(LOGICAL_GPUS, raising=False)
    with pytest.raises(RuntimeError, match="assigned a GPU"):
        context(tmp_path, gpus=1.0).device()
    assert context(tmp_path).device() == "cpu"


def test_a_rehearsal_runs_on_the_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(LOGICAL_GPUS, "1")
    assert context(tmp_path, gpus=1.0).device() == "cpu"


@pytest.mark.parametrize("augmented", [False, True])
def test_a_finished_trial_leaves_the_predictions_it_was_scored_by(
    tmp_path: Path, *, augmented: bool
) -> None:
    results = run(trial(tmp_path, augment_validation=augmented))
    path = tmp_path / "3" / "replicates" / "1" / "predictions.csv"
    found = pd.read_csv(path)
    names = ["side", "recording", "start", "patient", "device", "label", "predicted"]
    assert list(found.columns) == [*names, *(f"p_{c}" for c in CLASSES)]
    assert list(found["recording"]) == [f"r{i}" for i in [*range(18, CLIPS), *range(12)]]
    assert set(found["side"]) == {"validation"}
    assert [CLASSES.index(c) for c in found["label"]] == [
        int(r[1:]) % 3 for r in found["recording"]
    ]
    probabilities = found[[f"p_{c}" for c in CLASSES]].to_numpy()
    labels = np.array([CLASSES.index(c) for c in found["label"]])
    scores = [
        compute_metrics(labels[s], probabilities[s], ["macro_f1"])["macro_f1"]
        for s in (slice(12), slice(12, None))
    ]
    assert rows(results)[-1]["val_macro_f1"] == pytest.approx(np.mean(scores))

    path.unlink()  # as when the worker dies between its checkpoint and its last report
    (again,) = run(trial(tmp_path, augment_validation=augmented))
    assert (rows([again]), again["epoch"]) == (rows(results), 3)
    assert pd.read_csv(path).equals(found)


@pytest.mark.parametrize("damage", ["cut off", "overwritten", "empty", "of another network"])
def test_a_damaged_checkpoint_is_said_and_the_trial_starts_over(
    tmp_path: Path, damage: str
) -> None:
    whole = run(trial(tmp_path))
    path = tmp_path / "3" / "replicates" / "1" / "checkpoint.pt"
    content = path.read_bytes()
    if damage == "of another network":
        run(trial(tmp_path / "other", width=8))
        content = (tmp_path / "other" / path.relative_to(tmp_path)).read_bytes()
    path.write_bytes(
        {"cut off": content[:-2000], "overwritten": b"x" * 5000, "empty": b""}.get(damage, content)
    )
    again = run(trial(tmp_path))
    said = "is of another trial" if damage == "of another network" else "is damaged"
    assert said in again[0]["message"]
    assert "\n" not in again[0]["message"]
    assert [r["message"] for r in again[1:]] == [None] * (len(again) - 1)
    assert rows(again) == rows(whole)
    (after,) = run(trial(tmp_path))
    assert after["message"] is None


def test_a_store_is_filled_by_whoever_wants_it_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    compute = FeatureCaches._compute_pass
    monkeypatch.setattr(
        FeatureCaches, "_compute_pass", lambda *a: (made.append("once"), compute(*a))
    )
    lazy: FeatureCaches = pickle.loads(pickle.dumps(caches(tmp_path)))  # noqa: S301  # as Ray sends it
    small, wide = toy_config().front_end, toy_config(n_mels=24).front_end
    assert lazy.frames(small, workers=1) is lazy.frames(small, workers=1)
    assert made == ["once"]
    assert lazy.frames(wide, workers=1).values.shape[1] == 24
    ahead = FeatureCaches(tmp_path / "ahead", lazy.sources, lazy.limit_bytes)
    ahead.fill([small], workers=2)
    frames = dataclasses.replace(ahead, filled=frozenset([small])).frames(small, workers=1)
    assert torch.equal(frames.values, lazy.frames(small, workers=1).values)
    assert made == ["once"] * 3
