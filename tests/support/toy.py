"""A toy problem for the tests of features and learning: tones in noise, one band a class."""

from __future__ import annotations

import hashlib
import sys
from typing import Any

import torch

from resp_tune.config import TrialConfig
from resp_tune.features.batches import ClipIndex
from resp_tune.features.logmel import Frames, join_frames, log_mels
from resp_tune.training.fold_training import SplitTensors, TrainingData
from resp_tune.training.loop import Training

TONES = (200.0, 600.0, 1400.0)  # Hz
CLASSES = ("low", "middle", "high")


def toy_config(**values: Any) -> TrialConfig:
    """Clips of 16 frames and 16 bands; a network of a few thousand weights."""
    small = {
        "clip_seconds": 0.5,
        "n_mels": 16,
        "width": 4,
        "batch_size": 8,
        "epochs": 3,
        "lr": 0.01,
        "precision": "float32",
    }
    return TrialConfig().replace(small | values)


def toy_frames(config: TrialConfig, labels: torch.Tensor, seed: int) -> Frames:
    """A recording a label, 0.3 to 1 s long: some are padded, some are cropped."""
    generator = torch.Generator().manual_seed(seed)
    mels = []
    for label in labels.tolist():
        samples = int(config.sample_rate * (0.3 + 0.7 * torch.rand(1, generator=generator).item()))
        time = torch.arange(samples) / config.sample_rate
        tone = torch.sin(2 * torch.pi * TONES[label] * time)
        noise = torch.randn(samples, generator=generator)
        mels += log_mels(0.1 * tone + 0.05 * noise, [config.front_end])
    return join_frames(mels)


def toy_side(config: TrialConfig, clips: int, seed: int) -> SplitTensors:
    """Unbalanced: half the clips are of class 0, a third of class 1, a sixth of class 2."""
    labels = torch.tensor([0, 1, 0, 1, 0, 2])[torch.arange(clips) % 6]
    frames = toy_frames(config, labels, seed)
    return SplitTensors(ClipIndex(frames, frames.first, frames.count), labels)


def toy_folds(config: TrialConfig, folds: int) -> list[TrainingData]:
    """Folds over the same frames, each of its own 25 clips to train and 18 to validate on.

    25 clips make three batches of 8, the last of them with the clip that is left over.
    """
    whole = toy_side(config, 43 * folds, 0)

    def part(start: int, stop: int) -> SplitTensors:
        clips = whole.clips
        chosen = ClipIndex(clips.frames, clips.first[start:stop], clips.count[start:stop])
        return SplitTensors(chosen, whole.labels[start:stop])

    starts = range(0, 43 * folds, 43)
    return [TrainingData(part(i, i + 25), part(i + 25, i + 43), CLASSES) for i in starts]


def toy_data(config: TrialConfig) -> TrainingData:
    """One fold."""
    return toy_folds(config, 1)[0]


def trained(config: TrialConfig, folds: list[TrainingData]) -> Training:
    """A training that has run to its end."""
    training = Training(config, folds)
    while not training.done:
        training.run_epoch()
    return training


def fingerprint(training: Training) -> str:
    """A hash of every weight, of the optimiser's moments and of the figures but the seconds."""
    digest = hashlib.sha256()
    for fold in training.state()["folds"]:
        moments = fold["optimizer"]["state"].values()
        for tensors in (fold["network"], *moments):
            for name in sorted(tensors):
                digest.update(name.encode() + tensors[name].contiguous().numpy().tobytes())
    for result in training.history:
        row = {k: v for k, v in result.row().items() if k != "seconds"}
        digest.update(repr(sorted(row.items())).encode())
    return digest.hexdigest()


def train_alone() -> str:
    """The fingerprint of a short training with everything random switched on."""
    torch.set_num_threads(1)
    config = toy_config(n_freq_masks=1, max_mask_pct=0.3, augment_validation=True, seed=5)
    return fingerprint(trained(config, toy_folds(config, 2)))


if __name__ == "__main__":  # run by test_training in a process of its own
    sys.stdout.write(train_alone())
