"""Check that an MLflow store can be used, and which MLflow made it, before anything is written.

MLflow migrates the database of an older version in place at the first touch, also a read, after
which the older version cannot open it. So the schema's revision is read first, read-only.
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resp_tune.common.deadline import finishes_within
from resp_tune.errors import UserError
from resp_tune.tracking.mlflow_internals import known_schemas, quiet, request_experiments
from resp_tune.tracking.uri import is_server, public_base, redact, root_cause, sqlite_file

if TYPE_CHECKING:
    import sqlalchemy

PROBE_SECONDS = 5.0
_REQUEST_SECONDS = 4  # for an answer of a server, or for a lock of a database
_REVISION = "SELECT version_num FROM alembic_version"
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
        host = public_base(uri).partition("://")[2].partition("/")[0]
        raise UserError(
            f"the MLflow server at '{redact(uri)}' refuses this host name (403): start it with "
            f"--allowed-hosts '{host}', or ask for the right to write"
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


def _probe_postgres(uri: str) -> None:
    import sqlalchemy

    try:
        _connect_postgres(uri).close()
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
    tables = _sqlite_tables(uri, file)
    if tables and not {"experiments", "alembic_version"} <= tables:
        raise UserError(
            f"tracking URI '{uri}' is a database of something else than MLflow, or one that was "
            "interrupted while it was created: give another file, or move this one away"
        )
    check_version(uri)


def check_version(uri: str) -> None:
    """Raise `UserError` if another MLflow than the installed one made the database `uri`.

    Neither writes nor creates anything. Databases that cannot be queried pass: MLflow's own error
    says why.
    """
    schemas, revision = known_schemas(), _revision(uri)
    if schemas is None or revision is None or revision == schemas.head:
        return
    here, shown = f"MLflow {version('mlflow')}", redact(uri)
    if revision in schemas.dates:
        raise UserError(
            f"the MLflow store '{shown}' was made by an older version than {here} (database schema "
            f"{revision} of {schemas.dates[revision]}), which could not open it after an upgrade: "
            f"make a backup and run mlflow db upgrade '{shown}', or install the older MLflow, or "
            "give another --tracking-uri"
        )
    raise UserError(
        f"the MLflow store '{shown}' was made by a newer version than {here} (database schema "
        f"{revision}): run pip install -U mlflow, or give another --tracking-uri"
    )


def _revision(uri: str) -> str | None:
    rows = []
    if (file := sqlite_file(uri)) is not None:
        if file.is_file() and "alembic_version" in _sqlite_tables(uri, file):
            rows = _query_sqlite(uri, file, _REVISION)
    elif uri.partition("://")[0].partition("+")[0] == "postgresql":
        rows = _query_postgres(uri, _REVISION)
    return str(rows[0][0]) if len(rows) == 1 else None


def _sqlite_tables(uri: str, file: Path) -> set[str]:
    rows = _query_sqlite(uri, file, "SELECT name FROM sqlite_master WHERE type = 'table'")
    return {str(name) for (name,) in rows}


def _query_sqlite(uri: str, file: Path, query: str) -> list[Any]:
    """Return the rows of a query, read-only; `UserError` if the file cannot be queried."""
    try:
        try:
            return _rows(file, "ro", query)
        except sqlite3.OperationalError as error:
            if "readonly" not in str(error) and "unable to open" not in str(error):
                raise
            # A writer was killed: sqlite rolls its journal back, for which it must write.
            return _rows(file, "rw", query)
    except sqlite3.Error as error:
        if "locked" in str(error):
            raise UserError(
                f"tracking URI '{uri}' is locked by another program: close it, or wait until it "
                "ends, or give another --tracking-uri"
            ) from None
        raise UserError(
            f"tracking URI '{uri}' cannot be read as a sqlite database ({error}): give another, or "
            "move it away, and the same command recreates it from the study"
        ) from None


def _rows(file: Path, mode: str, query: str) -> list[Any]:
    address = f"{file.as_uri()}?mode={mode}"
    with closing(sqlite3.connect(address, uri=True, timeout=_REQUEST_SECONDS)) as connection:
        return connection.execute(query).fetchall()


def _query_postgres(uri: str, query: str) -> list[Any]:
    """Return the rows of a query, none of a new database or one that cannot be reached."""
    import sqlalchemy

    try:
        with _connect_postgres(uri) as connection:
            return list(connection.execute(sqlalchemy.text(query)))
    except (sqlalchemy.exc.SQLAlchemyError, ImportError, ValueError):
        return []


def _connect_postgres(uri: str) -> sqlalchemy.Connection:
    import sqlalchemy

    limit = {"connect_timeout": _REQUEST_SECONDS}
    # Without a pool, closing the connection leaves nothing open.
    return sqlalchemy.create_engine(
        uri, poolclass=sqlalchemy.NullPool, connect_args=limit
    ).connect()
