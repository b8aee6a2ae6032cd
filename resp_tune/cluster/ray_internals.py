"""All uses of private parts of Ray, checked with Ray 2.60, and Ray's settings for a search.

tests/test_ray_internals.py checks each of them and says what depends on it, for the day when an
upgrade of Ray changes one.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from resp_tune.errors import UserError

# Options of `ray.init`.
NODE_ADDRESS = "_node_ip_address"  # without it Ray guesses, and may take the head for this machine
TEMP_FOLDER = "_temp_dir"

# The longest path below `TEMP_FOLDER`; Linux numbers processes up to 4,194,304.
LONGEST_SOCKET = "session_2000-01-01_00-00-00_000000_4194304/sockets/plasma_store"

# With 0, Ray takes 127.0.0.1 for its own address, and then listens nowhere else. Without it, Ray
# replaces `_node_ip_address="127.0.0.1"` by the host's address.
ENABLE_CLUSTER = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"

# Run in a process of its own: Ray repeats a refused request for 20 s, an unanswered one for longer,
# and writes to our stderr meanwhile.
LIST_NODES = """
import json, sys
from ray._raylet import GcsClient
nodes = GcsClient(address=sys.argv[1]).get_all_node_info().values()
print(json.dumps([n.node_manager_address for n in nodes if n.state == 0]))
"""

# Each is read when it is used, not when Ray is imported, so it is early enough before `ray.init`.
# Our tracker and table replace Ray's loggers and output, and the study replaces its snapshots,
# which would otherwise be written at every report.
_SETTINGS = {
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "TUNE_RESULT_BUFFER_LENGTH": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}


def check_variables() -> None:
    """Raise `UserError` if Ray cannot read a setting in the environment.

    Its settings are numbers and the like in `RAY_` and a name in small letters. It reads them when
    it is imported, and crashes, so that is tried in another process.
    """
    given = [name for name in os.environ if re.match("RAY_[a-z]", name)]
    if not given:
        return
    command = [sys.executable, "-c", "import ray._raylet"]
    if subprocess.run(command, capture_output=True, check=False).returncode < 0:  # noqa: S603  # our own arguments, no shell
        raise UserError(
            f"Ray crashes with {', '.join(given)} as in the environment: correct these settings, "
            "or unset them"
        )


def prepare() -> None:
    """Set up Ray before `ray.init`; environment variables that the user has set stay."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    treat_out_of_memory_as_lost_worker()


def treat_out_of_memory_as_lost_worker() -> None:
    """Let Ray Tune retry a trial whose worker Ray's memory monitor has ended.

    Ray Tune knows a dead worker by `RayActorError`. What the monitor ends in the middle of a call
    comes as `OutOfMemoryError`, which is none, and it gives up all trials ("unexpected exception").
    """
    from ray.air.execution._internal.actor_manager import RayActorManager
    from ray.exceptions import OutOfMemoryError, RayActorError

    original = RayActorManager._actor_task_failed
    if original.__module__ == __name__:
        return

    def _actor_task_failed(self: Any, tracked_actor_task: Any, exception: Exception) -> None:
        if isinstance(exception, OutOfMemoryError):
            exception = RayActorError(error_msg=f"OutOfMemoryError: {exception}")
        original(self, tracked_actor_task, exception)

    RayActorManager._actor_task_failed = _actor_task_failed  # type: ignore[method-assign]  # it has no hook


def address_of_this_node() -> str | None:
    """Return HOST:PORT of the cluster that this machine is a node of, if it is one."""
    from ray._private.services import canonicalize_bootstrap_address

    return canonicalize_bootstrap_address("auto") or None


@contextlib.contextmanager
def loopback_only() -> Iterator[None]:
    """Let a Ray started inside use 127.0.0.1, with `ENABLE_CLUSTER=0` in the environment."""
    from ray._private import ray_constants

    original = ray_constants.ENABLE_RAY_CLUSTER  # the variable as it was when Ray was imported
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = original


def reload_authentication() -> None:
    """Let this process use `RAY_AUTH_*` as they are now; Ray must not be running in it.

    Ray reads the mode when it is imported and the token when it is first used, and keeps both.
    """
    # Compiled, and its stubs do not have them.
    from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
