"""Everything that depends on parts of MLflow it does not document.

tests/test_mlflow_internals.py fails when a new MLflow changes one of them, and says what to do.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resp_tune.common.text import one_line
from resp_tune.errors import UserError

# MLflow's page keeps a saved view in a tag of the experiment: JSON with `name`, `createdAt` (ms),
# and `state`, which is JSON text again. A page that does not know the tag shows default columns.
VIEW_TAG = "mlflow.sharedViewState."
_LOCKED_SECONDS = 30  # to wait for a locked database

DATABASE_LOGGER = "mlflow.store.db.utils"  # logs a traceback for each locked database

# Settings of `mlflow server`. Without the first, seven more processes start, for jobs.
SERVER_JOBS, SERVER_STORE = "MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "MLFLOW_BACKEND_STORE_URI"

# MLflow reads these at each call. A value that the user has set stays.
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    # The queue of writes retries by itself; MLflow would block its thread for minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
    # Otherwise each run prints its address on stdout, among our results, when it ends.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
_PLAIN_TEXT = ("MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")


def quiet() -> None:
    """Set the environment variables that MLflow reads, and silence its log unless they set it."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if "MLFLOW_LOGGING_LEVEL" in os.environ:
        return
    import mlflow  # noqa: F401  # its import configures the loggers

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    logging.getLogger(DATABASE_LOGGER).setLevel(logging.CRITICAL)
    logging.getLogger("alembic").setLevel(logging.ERROR)


@contextmanager
def without_package_index() -> Iterator[None]:
    """Log models without an index of every module of every installed package, which takes seconds.

    MLflow makes it to warn of requirements that are not installed; it then finds them by their
    names alone, as ours are.
    """
    from mlflow.utils import requirements_utils as utils

    before = utils._MODULES_TO_PACKAGES
    if before is None:
        utils._MODULES_TO_PACKAGES = {}  # type: ignore[assignment]  # its type is that of None
    try:
        yield
    finally:
        utils._MODULES_TO_PACKAGES = before


@dataclass(frozen=True)
class Schemas:
    """The revisions of the database schema that this MLflow knows, with their dates."""

    head: str  # the one it works with
    dates: dict[str, str]


@functools.cache
def known_schemas() -> Schemas | None:
    """Read the revisions from MLflow's migration scripts, without importing MLflow.

    None if the scripts are not a chain with one end, as far as we can read them.
    """
    spec = importlib.util.find_spec("mlflow")
    if spec is None or spec.origin is None:
        return None
    dates, replaced = {}, set()
    for script in (Path(spec.origin).parent / "store/db_migrations/versions").glob("*.py"):
        text = script.read_text(encoding="utf-8")
        if revision := re.search(r"^revision\b.*?=\s*[\"'](\w+)", text, re.MULTILINE):
            date = re.search(r"Create Date: ([\d-]+)", text)
            dates[revision[1]] = date[1] if date else "an unknown date"
            before = re.search(r"^down_revision\b.*", text, re.MULTILINE)
            replaced |= set(re.findall(r"[\"'](\w+)[\"']", before[0])) if before else set()
    heads = dates.keys() - replaced
    return Schemas(heads.pop(), dates) if len(heads) == 1 else None


# The columns of the database that hold addresses below an experiment's `artifact_location`.
ADDRESSES = {
    "runs": "artifact_uri",
    "logged_models": "artifact_location",
    "model_versions": "storage_location",
}


def replace_addresses(
    file: Path, old: str, new: str, replacement: Callable[[str], str | None]
) -> None:
    """Replace the location `old` of experiments in an sqlite store, and addresses below it.

    MLflow has no call for that. An address for which `replacement` returns None stays.
    """
    with closing(sqlite3.connect(file, timeout=_LOCKED_SECONDS)) as connection, connection:
        connection.create_function("replacement", 1, replacement)
        connection.execute(
            "UPDATE experiments SET artifact_location = ? WHERE artifact_location = ?", (new, old)
        )
        for table, column in ADDRESSES.items():
            connection.execute(
                f"UPDATE {table} SET {column} = coalesce(replacement({column}), {column}) "  # noqa: S608  # our names
                f"WHERE substr({column}, 1, length(?1)) = ?1",
                (f"{old}/",),
            )


def request(
    uri: str, path: str, content: dict[str, Any], timeout: float, method: str = "POST"
) -> Any:
    """Request `experiments/…` or the like of a server; return whatever it answers.

    `content` is the body of the request, or the query of a GET.

    This is MLflow's own request, so that its tokens, certificates and proxies apply.
    """
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    return http_request(  # type: ignore[no-untyped-call]  # mlflow has no annotation here
        get_default_host_creds(uri),  # type: ignore[no-untyped-call]  # nor here
        f"/api/2.0/mlflow/{path}",
        method,
        timeout=timeout,
        max_retries=0,
        raise_on_status=False,
        **{"params" if method == "GET" else "json": content},
    )


def check_variables() -> None:
    """Raise `UserError` for an environment variable `MLFLOW_…` whose value MLflow cannot read."""
    given = [n for n in os.environ if n.startswith("MLFLOW_") and n not in _PLAIN_TEXT]
    if all(os.environ[name] == _ENVIRONMENT.get(name) for name in given):
        return  # `import mlflow` takes more than a second
    try:
        from mlflow import environment_variables as known

        for variable in vars(known).values():
            if isinstance(variable, known._EnvironmentVariable) and variable.defined:
                variable.get()  # type: ignore[no-untyped-call]  # nor here
    except ValueError as error:
        named = next((name for name in given if name in str(error)), ", ".join(given))
        raise UserError(
            f"MLflow cannot read {named} ({one_line(error)}): correct this environment variable, "
            "or unset it"
        ) from error
