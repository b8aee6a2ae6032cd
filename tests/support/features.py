"""A toy problem for heads: pooled features of unbalanced classes, several clips a patient."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import torch

from resp_tune.config import TrialConfig
from resp_tune.features.pooled_clips import PooledClips
from resp_tune.training.fold_training import SplitTensors, TrainingData

CLASSES = ("common", "rarer", "rare")
FEATURES = 40


def head_config(**values: Any) -> TrialConfig:
    """A config with an encoder, which is never opened: the features are there already."""
    small = {"encoder": "toy.onnx", "head_c": 0.01, "hidden": 8, "batch_size": 8, "epochs": 4}
    return TrialConfig().replace({**small, "lr": 0.03, **values})


def toy_features(clips: int, seed: int) -> SplitTensors:
    """Features of which a few tell the class, on scales of 0.01 to 100, the last one constant."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([0, 0, 1, 0, 0, 1, 0, 2])[torch.arange(clips) % 8]
    values = torch.randn(clips, FEATURES, generator=generator)
    values[torch.arange(clips), labels] += 4.0
    values = 5 + values * torch.logspace(-2, 2, FEATURES)
    values[:, -1] = 7.0
    patients = np.arange(clips) // 3 * 8 + labels.numpy()  # one class a patient, uneven counts
    groups = {"patient": np.unique(patients, return_inverse=True)[1]}
    return SplitTensors(pooled(values), labels, groups)


def pooled(values: torch.Tensor) -> PooledClips:
    """Features with the key of their content."""
    return PooledClips(values, hashlib.sha256(values.numpy().tobytes()).hexdigest())


def feature_folds(folds: int = 1) -> list[TrainingData]:
    """Folds of 40 clips to train and 24 to validate on."""
    pairs = [(toy_features(40, 2 * n), toy_features(24, 2 * n + 1)) for n in range(folds)]
    return [TrainingData(train, validation, CLASSES) for train, validation in pairs]
