"""A training run's checkpoint: one file that appears whole or not at all.

Beside the training's state it names its trial: the config, and the study's id. Trial numbers are
used again, by a new search under an old name and by a trial that another machine had to propose
again, and a checkpoint of the other trial must not be resumed.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from resp_tune.common.paths import write_atomically
from resp_tune.config import TrialConfig
from resp_tune.training.loop import Training

CHECKPOINT = "checkpoint.pt"  # in a trial's folder


def save_checkpoint(path: Path, training: Training, study: str | None = None) -> None:
    """Write the training's state to `path`, and make its folder if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    identity = {"config": training.config.as_dict(), "study": study}
    state = io.BytesIO()
    torch.save({**training.state(), **identity}, state)
    write_atomically(path, state.getbuffer())


def resume(training: Training, path: Path, study: str | None = None) -> str | None:
    """Resume a new training from the checkpoint `path`; return what is wrong with the file, if any.

    Without a usable file it starts over; its seed makes it the same again.
    """
    if not path.exists():
        return None
    beginning = copy.deepcopy(training.state())
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        if not _is_of(state, training.config, study):
            return "is of another trial"
        training.load_state(state)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # torch's reader raises many kinds for a damaged file
        training.load_state(beginning)
        # Its message is left out: it advises to load the file unsafely.
        return f"is damaged ({type(error).__name__})"
    return None


def epochs_in(path: Path, config: TrialConfig, study: str | None = None) -> int:
    """Return the number of epochs in the checkpoint `path` of this trial, 0 if unusable."""
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
        return len(state["history"]) if _is_of(state, config, study) else 0
    except MemoryError:
        raise
    except Exception:  # missing or damaged: `resume` reports it
        return 0


def _is_of(state: Mapping[str, Any], config: TrialConfig, study: str | None) -> bool:
    """Return whether the checkpoint is of this trial; those of release 0.1 do not say."""
    if study is not None and state.get("study") not in (None, study):
        return False
    saved, now = state.get("config") or {}, config.as_dict()
    # A trial that ran out of memory has resumed with a smaller micro-batch.
    return all(now[k] == v for k, v in saved.items() if k in now and k != "micro_batch")
