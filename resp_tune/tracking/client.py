"""Open MLflow stores, quietly, without telemetry and without long retries.

`import mlflow` takes more than a second, so it happens on first use.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from resp_tune.common.fault_points import fault_point
from resp_tune.errors import RunError, UserError
from resp_tune.tracking.mlflow_internals import quiet
from resp_tune.tracking.moved_store import ARTIFACTS, relocate
from resp_tune.tracking.store_probe import EXPERIMENT, check_active, check_version
from resp_tune.tracking.uri import is_server, redact, root_cause, sqlite_file

if TYPE_CHECKING:
    from mlflow import MlflowClient

FULL = "disk is full"  # part of sqlite's message

# Errors that MLflow would repeat; anything else may pass when it is retried.
_PERMANENT = {
    "INVALID_PARAMETER_VALUE",
    "INVALID_STATE",
    "RESOURCE_ALREADY_EXISTS",
    "RESOURCE_DOES_NOT_EXIST",
}


def connect(uri: str) -> MlflowClient:
    """Return a client of the store `uri`, which is created if it is a missing sqlite file.

    It is created under a lock, because two processes that create it at once leave it broken, and
    under another name until it is complete. A store of another MLflow version is refused, never
    migrated. Raises `UserError` if the store cannot be used, `RunError` if its disk is full.
    """
    check_version(uri)
    quiet()
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        with store_lock(uri):
            if (file := sqlite_file(uri)) is not None and not file.exists():
                _make_store(file)
            return _open(uri)
    except (MlflowException, SQLAlchemyError, OSError, ValueError) as error:
        if FULL in (cause := root_cause(error, uri)):
            raise RunError(
                f"disk full while writing the MLflow store '{redact(uri)}' ({cause}): free some "
                "space and rerun the same command to resume"
            ) from None
        raise UserError(
            f"the MLflow store '{redact(uri)}' cannot be used ({cause}): give another "
            "--tracking-uri"
        ) from None


def _open(uri: str) -> MlflowClient:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri, registry_uri=uri)
    client.search_experiments(max_results=1)  # opens or creates the store
    fault_point("mlflow-opened")
    return client


def _make_store(file: Path) -> None:
    """Create a sqlite store completely or not at all: MLflow cannot repair a part of one."""
    beside = file.with_name(f".{file.name}.part")
    _remove_database(beside)  # left by a killed process: the lock is ours
    try:
        _open(f"sqlite:///{beside}")
        beside.replace(file)
    finally:
        _remove_database(beside)


def _remove_database(file: Path) -> None:
    for path in (file, file.with_name(f"{file.name}-journal")):
        path.unlink(missing_ok=True)


def store_lock(uri: str) -> AbstractContextManager[object]:
    """Return the lock under which a sqlite store or its experiment is created."""
    if (file := sqlite_file(uri)) is None:
        return nullcontext()
    file.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{file}.lock", timeout=120)


def is_permanent(error: Exception) -> bool:
    """Return whether a write that failed with `error` would fail again."""
    code = getattr(error, "error_code", None)
    # An error of neither MLflow nor the network is a mistake in this program: no retry mends it.
    return code in _PERMANENT if code is not None else not isinstance(error, OSError)


def experiment_id(client: MlflowClient, uri: str, storage: Path) -> str:
    """Return the id of the experiment `resp_tune`, which is created if it is missing.

    Its artefacts go beside a database (`mlartifacts`, an absolute file URI); a server decides for
    itself. By default MLflow would write them to `./mlruns` of the current folder. In a store that
    was moved the addresses are brought up to date first.
    """
    from mlflow.exceptions import MlflowException

    with store_lock(uri):
        relocate(uri)
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            file = sqlite_file(uri)
            folder = storage.absolute() if file is None else file.parent
            artifacts = None if is_server(uri) else (folder / ARTIFACTS).as_uri()
            try:
                return str(client.create_experiment(EXPERIMENT, artifacts))
            except MlflowException:
                # Another search created it a moment ago on a server, which has no shared lock.
                experiment = client.get_experiment_by_name(EXPERIMENT)
                if experiment is None:
                    raise
    check_active(experiment.experiment_id, experiment.lifecycle_stage)
    return str(experiment.experiment_id)
