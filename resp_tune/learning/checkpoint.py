"""A training run's checkpoint: one file that appears whole or not at all."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import torch

from resp_tune.config import TrialConfig
from resp_tune.learning.training import Training, TrainingData
from resp_tune.paths import write_atomically

CHECKPOINT = "checkpoint.pt"  # in a trial's folder


def save_checkpoint(path: Path, training: Training) -> None:
    """Write the training's state to `path`, whose folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = io.BytesIO()
    torch.save(training.state(), state)
    write_atomically(path, state.getbuffer())


def resume(
    config: TrialConfig, folds: Sequence[TrainingData], device: str, path: Path
) -> tuple[Training, str | None]:
    """The training as the checkpoint `path` left it, and what is wrong with the file.

    Without a file, or with one that cannot be used, the training starts from nothing: its seed
    makes it the same again.
    """
    training = Training(config, folds, device)
    if not path.exists():
        return training, None
    try:
        training.load_state(torch.load(path, weights_only=True, map_location="cpu"))
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever torch's reader makes of a file cut off or overwritten
        said = (str(error).strip() or "no reason given").splitlines()[0][:200]
        return Training(config, folds, device), f"{type(error).__name__}: {said}"
    return training, None
