"""Trials on the toy problem, in this process and without Ray around them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from resp_tune.common.trial_key import TrialKey
from resp_tune.execution.trainable import TrialTrainable
from resp_tune.execution.trial_context import TrialArtifacts, TrialContext
from resp_tune.features.cache import AudioSource, FeatureCaches
from resp_tune.training.datamodule import ClipLabels, FoldTables
from support.toy import CLASSES, TONES, toy_config

CLIPS = 30
LABELS = np.arange(CLIPS) % 3


def tone(label: int, seed: int, rate: int, resampling: str) -> torch.Tensor:
    noise = torch.randn(rate // 2, generator=torch.Generator().manual_seed(seed))
    return 0.1 * torch.sin(2 * torch.pi * TONES[label] * torch.arange(rate // 2) / rate) + noise


def caches(folder: Path) -> FeatureCaches:
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
        np.array([f"s{i}" for i in which]),
        np.array([f"p{i % 7}" for i in which]),
        np.array(["Meditron"] * len(chosen)),
    )


FOLDS = (
    FoldTables(table(range(18)), table(range(18, CLIPS)), CLASSES),
    FoldTables(table(range(12, CLIPS)), table(range(12)), CLASSES),
)


def context(folder: Path, *, gpus: float = 0.0, timeout: float | None = None) -> TrialContext:
    return TrialContext(
        FOLDS, caches(folder), TrialArtifacts(folder), "macro_f1", (), 1, gpus, timeout
    )


def trial(folder: Path, *, timeout: float | None = None, **values: Any) -> Any:
    """Return the first replicate of trial 3 in a worker without Ray around it."""
    worker: Any = TrialTrainable.__new__(TrialTrainable)
    config = {"config": toy_config(**values), "key": TrialKey(3, 1), "attempt": "a"}
    worker.setup(config, context(folder, timeout=timeout))
    return worker


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
