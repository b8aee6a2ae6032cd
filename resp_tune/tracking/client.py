"""An MLflow client for this process: quiet, without telemetry, quick to give up on a dead server.

`import mlflow` takes more than a second, so it happens here, on first use.
"""

from __future__ import annotations

import logging
import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from resp_tune.common.fault_points import fault_point
from resp_tune.errors import RunError, UserError
from resp_tune.tracking.uri import is_server, redact, root_cause, sqlite_file

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "resp_tune"
FULL = "disk is full"  # as sqlite says it

# Read by mlflow at each call. A value that the user has set stays.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    # Retrying is the writer's own work: mlflow's would hold its thread for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    # Otherwise each run that ends prints its address on stdout, among our results.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


def quiet() -> None:
    """Set what mlflow reads from the environment, and silence its log lines.

    `MLFLOW_LOGGING_LEVEL`, where the user has set it, brings the lines back.
    """
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if "MLFLOW_LOGGING_LEVEL" in os.environ:
        return
    import mlflow  # noqa: F401  # its import configures the loggers; what is set before is lost

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    # It logs a traceback for each locked database; the writer says that in one line.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    logging.getLogger("alembic").setLevel(logging.ERROR)


def connect(uri: str) -> MlflowClient:
    """A client of the store `uri`; makes or upgrades nothing that exists already.

    A sqlite store that is not there yet is made, under a lock beside it, because two processes
    that make it at once leave it broken, and under another name until it is whole. Raises
    `UserError` where the store cannot be used, `RunError` where its disk is full.
    """
    quiet()
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with store_lock(uri):
            if (file := sqlite_file(uri)) is not None and not file.exists():
                _make_store(file)
            return _opened(uri)
    except (MlflowException, SQLAlchemyError, OSError, ValueError) as error:
        if FULL in (cause := root_cause(error, uri)):
            raise RunError(
                f"no space left for the MLflow store '{redact(uri)}' ({cause}): free some, then "
                "type the same command again: it goes on"
            ) from None
        raise UserError(_refusal(uri, error)) from None


def _opened(uri: str) -> MlflowClient:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    client.search_experiments(max_results=1)  # the store is opened, or made, on first use
    fault_point("mlflow-opened")
    return client


def _make_store(file: Path) -> None:
    """A sqlite store that is there whole or not at all: mlflow cannot mend half a one."""
    beside = file.with_name(f".{file.name}.part")
    _remove_database(beside)  # of somebody who was killed: the lock is ours
    try:
        _opened(f"sqlite:///{beside}")
        beside.replace(file)
    finally:
        _remove_database(beside)


def _remove_database(file: Path) -> None:
    for path in (file, file.with_name(f"{file.name}-journal")):
        path.unlink(missing_ok=True)


def store_lock(uri: str) -> AbstractContextManager[object]:
    """Held by one process at a time that makes a sqlite store or its experiment."""
    if (file := sqlite_file(uri)) is None:
        return nullcontext()
    file.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{file}.lock", timeout=120)


def _refusal(uri: str, error: BaseException) -> str:
    if "out-of-date database schema" in str(error):
        return (
            f"the MLflow store '{redact(uri)}' was made by an older mlflow: back it up, then run "
            f"mlflow db upgrade '{redact(uri)}'"
        )
    if "Can't locate revision" in str(error):
        return (
            f"the MLflow store '{redact(uri)}' was made by a newer mlflow than is installed here: "
            "upgrade with pip install -U mlflow, or give another --tracking-uri"
        )
    return (
        f"the MLflow store '{redact(uri)}' cannot be used ({root_cause(error, uri)}): "
        "give another --tracking-uri"
    )


def experiment_id(client: MlflowClient, uri: str, storage: Path) -> str:
    """The id of the experiment `resp_tune`, made where it is missing.

    Artefacts go beside a database (`mlartifacts`, an absolute file URI); a server decides itself.
    Without that, mlflow would write them to `./mlruns` of whoever runs the command.
    """
    from mlflow.exceptions import MlflowException

    with store_lock(uri):
        found = client.get_experiment_by_name(EXPERIMENT)
        if found is None:
            try:
                return str(client.create_experiment(EXPERIMENT, _artifact_location(uri, storage)))
            except MlflowException:
                # Another search made it a moment ago, on a server, where no lock is shared.
                found = client.get_experiment_by_name(EXPERIMENT)
                if found is None:
                    raise
    if found.lifecycle_stage != "active":
        raise UserError(
            f"the experiment '{EXPERIMENT}' was deleted in MLflow: bring it back with "
            f"mlflow experiments restore -x {found.experiment_id}, or give another --tracking-uri"
        )
    return str(found.experiment_id)


def _artifact_location(uri: str, storage: Path) -> str | None:
    if is_server(uri):
        return None
    file = sqlite_file(uri)
    folder = file.parent if file is not None else storage.absolute()
    return (folder / "mlartifacts").as_uri()
