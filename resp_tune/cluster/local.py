"""A Ray of our own for one search, started and ended here."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from resp_tune.cluster import ray_internals
from resp_tune.cluster.private_ray import secluded
from resp_tune.cluster.processes import family, kill, naming
from resp_tune.cluster.ray_thread import on_its_own_thread
from resp_tune.cluster.resources import Machine
from resp_tune.errors import RunError

LEAST_FREE = 100e6  # bytes for Ray's logs and sockets


@contextlib.contextmanager
def local_ray(machine: Machine, gpus: int) -> Iterator[None]:
    """Ray on this machine alone, with `gpus` GPUs (logical ones where there are none).

    Nobody but its owner can reach it: see `seclusion`, also for what it raises.
    """
    ray_internals.apply()
    import ray

    with secluded() as folder:
        options: dict[str, Any] = {
            # A cluster that runs here, or a stale file about one, would be joined otherwise.
            "address": "local",
            "num_cpus": machine.cpus,
            "num_gpus": gpus,
            "include_dashboard": False,
            "log_to_driver": False,
            "logging_level": logging.ERROR,
            "object_store_memory": 200_000_000,  # clip tables only: frames are memory-mapped
            "_temp_dir": str(folder / "ray"),  # Ray opens that one to everybody
        }

        daemons: list[psutil.Process] = []

        def begin() -> None:
            try:
                ray.init(**options)
            except Exception as error:  # each part of Ray that does not start has its own
                raise RunError(_not_started(error, folder)) from error
            daemons.extend(naming(str(folder)))

        def end() -> None:
            started = [process for daemon in daemons for process in family(daemon)]
            ray.shutdown()
            kill(started)  # its agents would notice only after half a minute that they are alone

        with on_its_own_thread(begin, end):
            yield


def _not_started(error: Exception, folder: Path) -> str:
    free = shutil.disk_usage(folder).free
    cause = " ".join(str(error).split())[:200]
    if "AF_UNIX path length" in cause:
        way_out = "that path is too long for a socket; set RAY_TMPDIR to a shorter one"
    elif free < LEAST_FREE:
        way_out = "set RAY_TMPDIR to a folder on another disk"
    else:
        way_out = "see its log"
    return (
        f"Ray could not be started ({cause}); its logs and sockets go to '{folder}', where "
        f"{free / 1e6:,.0f} MB are free: {way_out}, then type the same command again: it goes on"
    )
