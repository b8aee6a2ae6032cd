"""A training run's checkpoint: one file that appears whole or not at all.

Beside the training's state it says whose it is: the config, and the study that the trial is of.
Numbers are used again, by a search begun anew under an old name and by a trial that another machine
had to ask for again, and a checkpoint of the other one must not be taken.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from resp_tune.common.paths import write_atomically
from resp_tune.config import TrialConfig
from resp_tune.training.loop import Training, TrainingData

CHECKPOINT = "checkpoint.pt"  # in a trial's folder


def save_checkpoint(path: Path, training: Training, study: str | None = None) -> None:
    """Write the training's state to `path`, whose folder is made where it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whose = {"config": training.config.as_dict(), "study": study}
    state = io.BytesIO()
    torch.save({**training.state(), **whose}, state)
    write_atomically(path, state.getbuffer())


def resume(
    config: TrialConfig,
    folds: Sequence[TrainingData],
    device: str,
    path: Path,
    study: str | None = None,
) -> tuple[Training, str | None]:
    """The training as the checkpoint `path` left it, and what is wrong with the file ("is …").

    Without a file, or with one that cannot be used, the training starts from nothing: its seed
    makes it the same again.
    """
    training = Training(config, folds, device)
    if not path.exists():
        return training, None
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        if not _is_of(state, config, study):
            return training, "is of another trial"
        training.load_state(state)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever torch's reader makes of a file cut off or overwritten
        # Not what it says, which is advice to load it unsafely.
        return Training(config, folds, device), f"is damaged ({type(error).__name__})"
    return training, None


def epochs_in(path: Path, config: TrialConfig, study: str | None = None) -> int:
    """How many epochs the checkpoint `path` of this trial holds; 0 where it cannot be used."""
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        return len(state["history"]) if _is_of(state, config, study) else 0
    except MemoryError:
        raise
    except Exception:  # not there, or damaged: `resume` says so
        return 0


def _is_of(state: Mapping[str, Any], config: TrialConfig, study: str | None) -> bool:
    """Whether the checkpoint is of this trial; what earlier releases wrote does not say."""
    if study is not None and state.get("study") not in (None, study):
        return False
    known, now = state.get("config") or {}, config.as_dict()
    # Where memory did not suffice, a trial has gone on with another micro-batch.
    return all(now[k] == v for k, v in known.items() if k in now and k != "micro_batch")
