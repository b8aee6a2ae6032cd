"""Train one batch of the baseline before any trial, so that a bug is found once, not by each."""

from __future__ import annotations

import contextlib
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import ray
import torch

from resp_tune.cluster.node_calls import Caller
from resp_tune.cluster.resources import TrialResources
from resp_tune.common.deadline import finishes_within
from resp_tune.common.paths import write_atomically
from resp_tune.config import TrialConfig
from resp_tune.errors import RunError
from resp_tune.execution.trainable import start_training
from resp_tune.execution.trial_context import TrialContext
from resp_tune.execution.watchdog import MARGIN_SECONDS
from resp_tune.training.memory import is_out_of_memory
from resp_tune.training.networks.network_registry import BUILT_IN

Failure = tuple[str, str]  # a line, and the whole traceback
MIN_SECONDS = 30.0  # the first batch imports what later ones need not, which may take long
TRACE_FILE = "sanity_check.txt"  # in the search's folder: the whole traceback


def check_baseline(
    context: TrialContext,
    slots: TrialResources,
    config: TrialConfig,
    folder: Path,
    *,
    here: bool = True,
) -> None:
    """Train and validate one batch of `config` as a trial would; raise `RunError` if that fails.

    What fails here, or takes longer than a trial may, would fail every trial; except short memory,
    which a trial deals with itself. With `here` this process does it, unless it needs a GPU.
    """
    limit = None if context.timeout is None else max(context.timeout, MIN_SECONDS) + MARGIN_SECONDS
    if here and not slots.gpus:
        failure = _check_here(context, config, limit)
    else:
        failure = _check_in_worker(context, slots, config, limit)
    if failure is None:
        return
    cause, trace = failure
    of = "" if config.network in BUILT_IN else f" with network '{config.network}'"
    write_atomically(folder / TRACE_FILE, trace.encode())
    raise RunError(
        f"one batch of the baseline{of} fails, so no trial was started: {cause} "
        f"(whole traceback: {folder / TRACE_FILE})"
    )


def _check_here(context: TrialContext, config: TrialConfig, limit: float | None) -> Failure | None:
    """Check in a thread of this process, which has imported torch; a worker takes seconds to.

    On timeout the thread is abandoned, as the process is about to exit.
    """
    results: list[Failure | None] = []
    thread = 0
    threads = torch.get_num_threads()
    _fill_cache(context, config)

    def check() -> None:
        nonlocal thread
        thread = threading.get_ident()
        results.append(_run_batch(context, config))

    in_time = finishes_within(limit, check)
    torch.set_num_threads(threads)
    if in_time:
        return results[0]
    frame = sys._current_frames().get(thread)
    return _timeout_message(context), "".join(traceback.format_stack(frame))


def _check_in_worker(
    context: TrialContext, slots: TrialResources, config: TrialConfig, limit: float | None
) -> Failure | None:
    """Check in a process that Ray places like a trial's: this one takes no memory of a GPU.

    It is an actor because, when a host is cut off, Ray gives up actors, but not plain tasks.
    """
    actor: Any = ray.remote(num_cpus=slots.cpus, num_gpus=slots.gpus, max_restarts=1)(Caller)
    worker = actor.options(max_task_retries=1).remote()
    try:
        ray.get(worker.call.remote(_fill_cache, context, config))
        failure: Failure | None = ray.get(
            worker.call.remote(_run_batch, context, config), timeout=limit
        )
    except ray.exceptions.GetTimeoutError:
        return _timeout_message(context), _timeout_message(context)
    except ray.exceptions.OutOfMemoryError:
        return None
    except ray.exceptions.RayError as error:
        return _line(error), str(error)
    finally:
        ray.kill(worker)
    return failure


def _fill_cache(context: TrialContext, config: TrialConfig) -> None:
    """Fill the feature cache, which takes its own time; an error here will fail the batch too."""
    with contextlib.suppress(Exception):
        context.caches.filled_folders(config.front_ends, workers=context.threads)


def _timeout_message(context: TrialContext) -> str:
    return f"it took longer than --trial-timeout ({context.timeout:g} s)"


def _run_batch(context: TrialContext, config: TrialConfig) -> Failure | None:
    """Return the error of one batch and its traceback, or None if it succeeds."""
    try:
        start_training(context, config).try_one_batch()
    except Exception as error:
        return None if is_out_of_memory(error) else (_line(error), traceback.format_exc())
    return None


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
