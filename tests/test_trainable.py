"""A trial in its worker, without Ray around it: files, resuming, and the GPU it was promised."""

from __future__ import annotations

import dataclasses
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from toy import CLASSES, TONES, toy_config

from resp_tune.cluster.resources import LOGICAL_GPUS
from resp_tune.execution.trainable import TrialContext, TrialTrainable, _device
from resp_tune.execution.trial_artifacts import Sender
from resp_tune.features import cache
from resp_tune.features.cache import AudioSource
from resp_tune.training.datamodule import ClipLabels, FeatureCaches, FoldTables
from resp_tune.training.metrics import macro_f1

CLIPS = 30
LABELS = np.arange(CLIPS) % 3


def tone(label: int, seed: int, rate: int) -> torch.Tensor:
    noise = torch.randn(rate // 2, generator=torch.Generator().manual_seed(seed))
    return 0.1 * torch.sin(2 * torch.pi * TONES[label] * torch.arange(rate // 2) / rate) + noise


def stores(folder: Path) -> FeatureCaches:
    sources = [AudioSource(f"r{i}", f"d{i}", partial(tone, LABELS[i], i)) for i in range(CLIPS)]
    return FeatureCaches(folder / "features", tuple(sources), 10**9)


def table(which: range) -> ClipLabels:
    chosen = np.array(which)
    return ClipLabels(
        chosen,
        np.zeros(len(chosen)),
        np.full(len(chosen), 0.5),
        LABELS[chosen],
        np.array([f"r{i}" for i in which]),
        np.array([f"p{i % 7}" for i in which]),
        np.array(["Meditron"] * len(chosen)),
    )


FOLDS = (
    FoldTables(table(range(18)), table(range(18, CLIPS)), CLASSES),
    FoldTables(table(range(12, CLIPS)), table(range(12)), CLASSES),
)


def work(folder: Path, *, gpus: float = 0.0, timeout: float | None = None) -> TrialContext:
    return TrialContext(FOLDS, stores(folder), folder, "macro_f1", (), 1, gpus, timeout)


def trial(folder: Path, *, timeout: float | None = None, reported: int = 0, **values: Any) -> Any:
    made = TrialTrainable.__new__(TrialTrainable)  # without Ray around it
    made.work, made.watch, made.stranger = work(folder, timeout=timeout), None, None
    made.sender = Sender(made.work.trials)
    made._begin(
        {
            "config": toy_config(**values).as_dict(),
            "folder": "3/replicates/1",
            "epochs_reported": reported,
            "attempt": "a",
        }
    )
    return made


def run(made: Any) -> list[dict[str, Any]]:
    """What the trial reports until it is done."""
    results = [made.step()]
    while not results[-1]["done"]:
        results.append(made.step())
    assert [r["error"] for r in results] == [None] * len(results)
    return results


def rows(results: list[dict[str, Any]]) -> list[dict[str, float]]:
    told = [row for result in results for row in result["epochs"]]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in told]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU to give")
def test_a_trial_that_finds_no_gpu_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(LOGICAL_GPUS, raising=False)
    with pytest.raises(RuntimeError, match="promised a GPU"):
        _device(work(tmp_path, gpus=1.0))
    assert _device(work(tmp_path)) == "cpu"


def test_a_rehearsal_runs_on_the_cpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(LOGICAL_GPUS, "1")
    assert _device(work(tmp_path, gpus=1.0)) == "cpu"


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
    scores = [macro_f1(labels[s], probabilities[s]) for s in (slice(12), slice(12, None))]
    assert rows(results)[-1]["val_macro_f1"] == pytest.approx(np.mean(scores))

    path.unlink()  # as when the worker dies between its checkpoint and its last report
    (again,) = run(trial(tmp_path, augment_validation=augmented, reported=3))
    assert (again["epochs"], again["epoch"]) == ([], 3)
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
    again = run(trial(tmp_path, reported=2))
    said = "is of another trial" if damage == "of another network" else "is damaged"
    assert said in again[0]["remark"]
    assert "\n" not in again[0]["remark"]
    assert [r["remark"] for r in again[1:]] == [None] * (len(again) - 1)
    assert rows(again) == rows(whole)[2:], "what the study has is not told twice"
    (after,) = run(trial(tmp_path, reported=3))
    assert after["remark"] is None


def test_a_store_is_filled_by_whoever_wants_it_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    compute = cache._compute
    monkeypatch.setattr(cache, "_compute", lambda *a: (made.append("once"), compute(*a)))
    lazy: FeatureCaches = pickle.loads(pickle.dumps(stores(tmp_path)))  # noqa: S301  # as Ray sends it
    small, wide = toy_config().front_end, toy_config(n_mels=24).front_end
    assert lazy.frames(small, workers=1) is lazy.frames(small, workers=1)
    assert made == ["once"]
    assert lazy.frames(wide, workers=1).values.shape[1] == 24
    ahead = FeatureCaches(tmp_path / "ahead", lazy.sources, lazy.limit_bytes)
    ahead.fill([small], workers=2)
    frames = dataclasses.replace(ahead, sound=frozenset([small])).frames(small, workers=1)
    assert torch.equal(frames.values, lazy.frames(small, workers=1).values)
    assert made == ["once"] * 3
