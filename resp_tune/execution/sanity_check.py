"""One batch of the baseline before any trial: a bug is found once, and not by every trial."""

from __future__ import annotations

import contextlib
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import ray
import torch

from resp_tune.cluster.resources import TrialResources
from resp_tune.common.paths import write_atomically
from resp_tune.config import TrialConfig
from resp_tune.errors import RunError
from resp_tune.execution.trainable import TrialContext, begin_training
from resp_tune.execution.watchdog import MARGIN_SECONDS
from resp_tune.training.memory import is_out_of_memory

Failure = tuple[str, str]  # a line, and the whole traceback
LEAST_SECONDS = 30.0  # the first batch imports what no later one has to, on a busy machine for long
TRACE = "canary.txt"  # in the search's folder: the whole traceback


def check_baseline(
    work: TrialContext,
    slots: TrialResources,
    config: TrialConfig,
    folder: Path,
    *,
    here: bool = True,
) -> None:
    """Train and validate one batch of `config` as a trial would; `RunError` with what went wrong.

    What fails here, or takes longer than a trial may, would fail every trial. Memory that does not
    suffice is a trial's own to deal with. `here`: this process may do it, where no GPU is needed.
    """
    found = _here(work, config) if here and not slots.gpus else _elsewhere(work, slots, config)
    if found is None:
        return
    cause, trace = found
    write_atomically(folder / TRACE, trace.encode())
    raise RunError(
        f"one batch of the baseline fails, so no trial was started: {cause} "
        f"(whole traceback: {folder / TRACE})"
    )


def _here(work: TrialContext, config: TrialConfig) -> Failure | None:
    """In this process, which has torch at hand; a worker takes seconds to import it."""
    threads = torch.get_num_threads()
    try:
        return _batch(work, config) if work.timeout is None else _in_time(work, config)
    finally:
        torch.set_num_threads(threads)


def _in_time(work: TrialContext, config: TrialConfig) -> Failure | None:
    """In a thread that is left behind where it hangs: the command is about to end."""
    found: list[Failure | None] = []
    _fill(work, config)
    thread = threading.Thread(target=lambda: found.append(_batch(work, config)), daemon=True)
    thread.start()
    thread.join(_limit(work))
    if found:
        return found[0]
    stood = sys._current_frames().get(thread.ident or 0)
    return _late(work), "".join(traceback.format_stack(stood))


def _fill(work: TrialContext, config: TrialConfig) -> None:
    """Fill the cache where nobody has: that takes its time. What fails, fails in the batch too."""
    with contextlib.suppress(Exception):
        work.caches.frames(config.front_end, workers=work.threads)


def _limit(work: TrialContext) -> float | None:
    return None if work.timeout is None else max(work.timeout, LEAST_SECONDS) + MARGIN_SECONDS


def _late(work: TrialContext) -> str:
    return f"it took longer than --trial-timeout ({work.timeout:g} s)"


class _SanityTrial:
    def fill(self, work: TrialContext, config: TrialConfig) -> None:
        _fill(work, config)

    def batch(self, work: TrialContext, config: TrialConfig) -> Failure | None:
        return _batch(work, config)


def _elsewhere(work: TrialContext, slots: TrialResources, config: TrialConfig) -> Failure | None:
    """Where a trial would run: this process takes no memory of a GPU.

    By an actor: of a host that is cut off, Ray gives those up, but not plain tasks.
    """
    made: Any = ray.remote(num_cpus=slots.cpus, num_gpus=slots.gpus, max_restarts=1)(_SanityTrial)
    actor = made.options(max_task_retries=1).remote()
    try:
        ray.get(actor.fill.remote(work, config))
        found: Failure | None = ray.get(actor.batch.remote(work, config), timeout=_limit(work))
    except ray.exceptions.GetTimeoutError:
        return _late(work), _late(work)
    except ray.exceptions.OutOfMemoryError:
        return None
    except ray.exceptions.RayError as error:
        return _line(error), str(error)
    finally:
        ray.kill(actor)
    return found


def _batch(work: TrialContext, config: TrialConfig) -> Failure | None:
    """What one batch fails with, and the traceback; None where it works."""
    try:
        begin_training(work, config).rehearse()
    except Exception as error:
        return None if is_out_of_memory(error) else (_line(error), traceback.format_exc())
    return None


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
