"""What Ray reads from the environment, as a search needs it of every Ray, ours or joined."""

from __future__ import annotations

import os

from resp_tune.cluster.ray_oom import mend

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


def apply() -> None:
    """Call it before `ray.init`; a value that the user has set stays."""
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    mend()


def reread_authentication() -> None:
    """Let this process see `RAY_AUTH_*` as they are now; Ray must not be running in it.

    Ray reads the mode when it is imported and the token when it is first used, and keeps both.
    """
    # Compiled, and its stubs do not have them.
    from ray._raylet import (  # type: ignore[attr-defined]
        AuthenticationTokenLoader,
        Config,
    )

    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
