"""A Ray of our own for one search, started and ended here."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator

from resp_tune.errors import RunError
from resp_tune.tuning.plan import Machine

LEAST_FREE = 100e6  # bytes for Ray's logs and sockets

# Read by Ray when it is imported. Our tracker and table replace its loggers and output, and the
# study replaces its snapshots, which would otherwise be written at every report.
_SETTINGS = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_TRAIN_V2_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "TUNE_RESULT_BUFFER_LENGTH": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


@contextlib.contextmanager
def local_ray(machine: Machine, gpus: int) -> Iterator[None]:
    """Ray on this machine alone, with `gpus` GPUs (logical ones where there are none)."""
    os.environ.update({k: v for k, v in _SETTINGS.items() if k not in os.environ})
    import ray

    polite_end = signal.getsignal(signal.SIGTERM)
    # `address="local"` because a cluster that happens to run here, or a stale file about one that
    # did, would otherwise be joined.
    try:
        ray.init(
            address="local",
            num_cpus=machine.cpus,
            num_gpus=gpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=200_000_000,  # clip tables only: frames are memory-mapped
        )
    except Exception as error:  # each part of Ray that does not start has its own
        raise RunError(_not_started(error)) from error
    # Ray has just put a handler of its own here, which aborts.
    signal.signal(signal.SIGTERM, polite_end)
    try:
        yield
    finally:
        ray.shutdown()


def _not_started(error: Exception) -> str:
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    cause = " ".join(str(error).split())[:200]
    if "AF_UNIX path length" in cause:
        way_out = "that path is too long for a socket; set RAY_TMPDIR to a shorter one"
    elif free < LEAST_FREE:
        way_out = "set RAY_TMPDIR to a folder on another disk"
    else:
        way_out = "see its log"
    return (
        f"Ray could not be started ({cause}); its logs and sockets go to '{folder}/ray', where "
        f"{free / 1e6:,.0f} MB are free: {way_out}, then type the same command again: it goes on"
    )
