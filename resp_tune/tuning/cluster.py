"""A Ray of our own for one search, started and ended here."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Iterator

from resp_tune.tuning.plan import Machine

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
    ray.init(
        address="local",
        num_cpus=machine.cpus,
        num_gpus=gpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=200_000_000,  # clip tables only: frames are memory-mapped
    )
    # Ray has just put a handler of its own here, which aborts.
    signal.signal(signal.SIGTERM, polite_end)
    try:
        yield
    finally:
        ray.shutdown()
