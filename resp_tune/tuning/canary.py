"""One batch of the baseline before any trial: a bug is found once, and not by every trial."""

from __future__ import annotations

import traceback
from pathlib import Path

import ray

from resp_tune.config import TrialConfig
from resp_tune.errors import RunError
from resp_tune.learning.memory import ran_out
from resp_tune.paths import write_atomically
from resp_tune.tuning.plan import Slots
from resp_tune.tuning.trainable import Work, begin_training

TRACE = "canary.txt"  # in the search's folder: the whole traceback


def check_baseline(work: Work, slots: Slots, config: TrialConfig, folder: Path) -> None:
    """Train and validate one batch of `config` where trials run; `RunError` with what went wrong.

    In a worker of Ray, with a trial's share of the machine: what fails there would fail every
    trial. Memory that does not suffice is a trial's own to deal with.
    """
    batch = ray.remote(num_cpus=slots.cpus, num_gpus=slots.gpus, max_retries=1)(_batch)
    try:
        found = ray.get(batch.remote(work, config))
    except ray.exceptions.RayError as error:
        said = str(error).strip().splitlines()[0]
        found = (f"its worker was lost: {said}", str(error))
    if found is None:
        return
    cause, trace = found
    write_atomically(folder / TRACE, trace.encode())
    raise RunError(
        f"one batch of the baseline fails, so no trial was started: {cause} "
        f"(whole traceback: {folder / TRACE})"
    )


def _batch(work: Work, config: TrialConfig) -> tuple[str, str] | None:
    """What one batch fails with, and the traceback; None where it works."""
    try:
        begin_training(work, config).rehearse()
    except Exception as error:
        return None if ran_out(error) else (_line(error), traceback.format_exc())
    return None


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
