"""A private Ray on this machine, for one search."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from resp_tune.cluster import ray_internals
from resp_tune.cluster.private_ray import private_ray_env
from resp_tune.cluster.processes import kill, process_tree, with_argument
from resp_tune.cluster.ray_thread import run_in_thread
from resp_tune.cluster.resources import Machine
from resp_tune.errors import RunError

MIN_FREE = 100e6  # bytes of disk for Ray's logs and sockets


@contextlib.contextmanager
def local_ray(machine: Machine, gpus: int) -> Iterator[None]:
    """Run Ray on this machine alone, with `gpus` GPUs, which are logical if there are none.

    Only its owner can reach it: see `private_ray`, also for the errors raised.
    """
    ray_internals.prepare()
    import ray

    with private_ray_env() as folder:
        options: dict[str, Any] = {
            # Without it Ray would join a cluster that runs here, or follow a stale file about one.
            "address": "local",
            "num_cpus": machine.cpus,
            "num_gpus": gpus,
            "include_dashboard": False,
            "log_to_driver": False,
            "logging_level": logging.ERROR,
            "object_store_memory": 200_000_000,  # clip tables only: frames are memory-mapped
            ray_internals.TEMP_FOLDER: str(folder / "ray"),  # Ray makes it writable for all
        }
        daemons: list[psutil.Process] = []

        def begin() -> None:
            try:
                ray.init(**options)
            except Exception as error:  # each part of Ray that does not start has its own
                raise RunError(_start_failed(error, folder)) from error
            daemons.extend(with_argument(str(folder)))

        def end() -> None:
            started = [process for daemon in daemons for process in process_tree(daemon)]
            ray.shutdown()
            kill(started)  # its agents would notice only after half a minute that they are alone

        with run_in_thread(begin, end):
            yield


def _start_failed(error: Exception, folder: Path) -> str:
    free = shutil.disk_usage(folder).free
    cause = " ".join(str(error).split())[:200]
    if "AF_UNIX path length" in cause:
        remedy = "that path is too long for a socket; set RAY_TMPDIR to a shorter one"
    elif free < MIN_FREE:
        remedy = "set RAY_TMPDIR to a folder on another disk"
    else:
        remedy = "see its log"
    return (
        f"Ray could not be started ({cause}); its logs and sockets go to '{folder}', where "
        f"{free / 1e6:,.0f} MB are free: {remedy}, then rerun the same command to resume"
    )
