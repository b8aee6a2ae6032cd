"""Check that the MLflow store of a search can be written to, before anything is written.

probe("sqlite:///results/mlflow.db")  # UserError within about 5 s; writes nothing
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from resp_tune.common.deadline import finishes_within
from resp_tune.errors import UserError
from resp_tune.tracking.client import quiet
from resp_tune.tracking.mlflow_internals import request_experiments
from resp_tune.tracking.store_version import check_version, query_sqlite
from resp_tune.tracking.uri import (
    is_server,
    public_base,
    redact,
    root_cause,
    sqlite_file,
)

PROBE_SECONDS = 5.0
_REQUEST_SECONDS = 4
_SUPPORTED = "http://, https://, postgresql:// or sqlite:///"


def probe(uri: str) -> None:
    """Raise `UserError` if `uri` cannot be written to; create nothing.

    Takes about `PROBE_SECONDS` at most, also if a host never answers.
    """
    # Not `urlsplit`, which refuses passwords with brackets in them, and shows them.
    scheme = uri.partition("://")[0] if "://" in uri else ""
    if is_server(uri):
        _within_seconds(_probe_server, uri)
    elif (file := sqlite_file(uri)) is not None:
        _probe_sqlite(uri, file)
    elif scheme.partition("+")[0] == "postgresql":
        _within_seconds(_probe_postgres, uri)
    elif scheme in ("", "file"):
        file = Path(uri.removeprefix("file://")).absolute()
        raise UserError(
            f"tracking URI '{redact(uri)}' is a path: MLflow no longer writes folders of files; "
            f"give sqlite:///{file.with_suffix('.db')} or the http:// address of a server"
        )
    else:
        raise UserError(f"tracking URI '{redact(uri)}' is not supported: give {_SUPPORTED}")


def check_there(uri: str) -> None:
    """Raise `UserError` if the sqlite file of `uri` is missing, which MLflow would create."""
    file = sqlite_file(uri)
    if file is not None and not file.is_file():
        raise UserError(
            f"there is no MLflow store '{file}': run a search first (bash scripts/search), or "
            "give its --tracking-uri"
        )


def _within_seconds(check: Callable[[str], None], uri: str) -> None:
    # The first import of MLflow takes seconds, which do not count as the server's time.
    quiet()
    import mlflow.utils.rest_utils  # noqa: F401

    if not finishes_within(PROBE_SECONDS, lambda: check(uri)):
        raise UserError(
            f"tracking URI '{redact(uri)}' did not answer within {PROBE_SECONDS:g} s: "
            "start it, or give another --tracking-uri"
        )


def _probe_server(uri: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        answer = request_experiments(uri, _REQUEST_SECONDS)
    except (MlflowException, OSError, ValueError) as error:
        raise UserError(
            f"no MLflow server answers at '{redact(uri)}' ({root_cause(error, uri)}): "
            "start it, or give another --tracking-uri"
        ) from None
    status = answer.status_code
    if status == 403:
        raise UserError(
            f"the MLflow server at '{redact(uri)}' refuses this host name (403): start it with "
            f"--allowed-hosts '{_host(uri)}', or ask for the right to write"
        )
    if status == 401:
        raise UserError(
            f"the MLflow server at '{redact(uri)}' wants a login (401): set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        )
    if status >= 500:
        raise UserError(
            f"the server at '{redact(uri)}' answers with an error ({status}): see its log, "
            "or give another --tracking-uri"
        )
    if status != 200 or "json" not in answer.headers.get("content-type", ""):
        raise UserError(
            f"what answers at '{redact(uri)}' is not an MLflow server (status {status}): "
            "give the address of one as --tracking-uri"
        )


def _host(uri: str) -> str:
    return public_base(uri).partition("://")[2].partition("/")[0]


def _probe_postgres(uri: str) -> None:
    import sqlalchemy

    try:
        engine = sqlalchemy.create_engine(uri, connect_args={"connect_timeout": _REQUEST_SECONDS})
        with engine.connect():
            pass
        engine.dispose()
    except ModuleNotFoundError as error:
        package = {"psycopg": "'psycopg[binary]'", "psycopg2": "psycopg2-binary"}
        raise UserError(
            f"tracking URI '{redact(uri)}' needs the module {error.name}: "
            f"pip install {package.get(error.name or '', error.name)}"
        ) from None
    except (sqlalchemy.exc.SQLAlchemyError, ValueError) as error:
        raise UserError(
            f"the database '{redact(uri)}' cannot be reached ({root_cause(error, uri)}): "
            "start it, or give another --tracking-uri"
        ) from None
    check_version(uri)


def _probe_sqlite(uri: str, file: Path) -> None:
    if any(char in str(file) for char in "?#%"):
        raise UserError(f"tracking URI '{uri}': a path with ?, # or % does not fit in a URI")
    if file.is_dir():
        raise UserError(f"tracking URI '{uri}' is a folder: add a file name such as /mlflow.db")
    folder = next(parent for parent in file.parents if parent.exists())
    try:  # permissions do not bind every user, and not every file system heeds them
        with tempfile.TemporaryDirectory(prefix=".resp_tune_", dir=folder):
            pass
    except OSError:
        raise UserError(
            f"tracking URI '{uri}': folder '{folder}' cannot be written to; "
            "give --storage or --tracking-uri elsewhere"
        ) from None
    if not file.exists():
        return
    if not os.access(file, os.R_OK | os.W_OK):
        raise UserError(f"tracking URI '{uri}': the file cannot be written to; give another")
    rows = query_sqlite(uri, file, "SELECT name FROM sqlite_master WHERE type = 'table'")
    tables = {str(name) for (name,) in rows}
    if tables and not {"experiments", "alembic_version"} <= tables:
        raise UserError(
            f"tracking URI '{uri}' is a database of something else than MLflow, or one that was "
            "interrupted while it was created: give another file, or move this one away"
        )
    check_version(uri)
