"""Check that an MLflow store can be used, and which MLflow made it, before anything is written.

MLflow migrates the database of an older version in place at the first touch, also a read, after
which the older version cannot open it. So the schema's revision is read first, read-only.
"""

from __future__ import annotations

import os
import re
import shlex
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resp_tune.common.deadline import finishes_within
from resp_tune.common.proxies import proxy_hint
from resp_tune.errors import UserError, named_in_errors
from resp_tune.tracking.mlflow_internals import known_schemas, quiet, request
from resp_tune.tracking.uri import (
    is_server,
    public_base,
    redact,
    root_cause,
    sqlite_file,
    variable_of,
)

if TYPE_CHECKING:
    import sqlalchemy

PROBE_SECONDS = 5.0
_REQUEST_SECONDS = 4  # for an answer of a server, or for a lock of a database
EXPERIMENT = "resp_tune"
NO_RUN = "0" * 32  # MLflow's ids are random
_REVISION = "SELECT version_num FROM alembic_version"
# HOST:PORT, an address of four numbers, or a name with a top-level domain that is no file's suffix.
_ADDRESS = re.compile(
    r"(\[[0-9a-f:]+\]|[\w.@:-]*[\w-]):\d+(/|$)|\d+(\.\d+){3}(/|$)|localhost(/|$)"
    r"|https?:|([\w-]+\.)+(?!(db|sqlite3?)\b)[a-z]{2,}(/|$)",
    re.ASCII | re.IGNORECASE,
)
_STAGE = f"SELECT experiment_id, lifecycle_stage FROM experiments WHERE name = '{EXPERIMENT}'"  # noqa: S608  # no input
# Whether this user may write to MLflow's tables, or make them, and the server is no read-only copy.
_MAY_WRITE = """
SELECT current_setting('transaction_read_only') = 'off' AND CASE
    WHEN to_regclass('runs') IS NULL THEN has_schema_privilege(current_schema(), 'CREATE')
    ELSE (SELECT bool_and(has_table_privilege(t, 'INSERT') AND has_table_privilege(t, 'UPDATE'))
        FROM unnest(ARRAY['runs', 'params', 'metrics', 'latest_metrics', 'tags']) AS t) END
"""
# Whether this user may make an experiment, whose number comes from a sequence.
_MAY_NUMBER = f"""
SELECT EXISTS (SELECT 1 FROM experiments WHERE name = '{EXPERIMENT}')
    OR has_table_privilege('experiments', 'INSERT') AND coalesce(has_sequence_privilege(
        pg_get_serial_sequence('experiments', 'experiment_id'), 'USAGE'), true)
"""  # noqa: S608  # no input
_SUPPORTED = "http://, https://, postgresql:// or sqlite:///"


def probe(uri: str, *, write: bool = True) -> None:
    """Raise `UserError` if `uri` cannot be read or, with `write`, written to; create nothing.

    Takes about `PROBE_SECONDS` at most, also if a host never answers.
    """
    with named_in_errors(variable_of(uri)):
        _probe(uri, write)


def _probe(uri: str, write: bool) -> None:
    # Not `urlsplit`, which refuses passwords with brackets in them, and shows them.
    scheme = uri.partition("://")[0] if "://" in uri else ""
    if is_server(uri):
        _within_seconds(lambda uri: _probe_server(uri, write), uri)
    elif (file := sqlite_file(uri)) is not None:
        _probe_sqlite(uri, file)
    elif scheme.partition("+")[0] == "postgresql":
        _within_seconds(lambda uri: _probe_postgres(uri, write), uri)
    elif scheme in ("", "file"):
        path = re.sub("^file:(//)?", "", uri)
        if _ADDRESS.match(path) and not Path(path).exists():
            address = redact(re.sub("^(https?:/*)?", "http://", path))
            shown = address.removeprefix("http://")
            raise UserError(
                f"tracking URI '{shown}' has no scheme: give {address}, or https://{shown}"
            )
        file = Path(path).absolute()
        raise UserError(
            f"tracking URI '{redact(uri)}' is a path: MLflow no longer writes folders of files; "
            f"give sqlite:///{file.with_suffix('.db')} or the http:// address of a server"
        )
    else:
        raise UserError(f"tracking URI '{redact(uri)}' is not supported: give {_SUPPORTED}")


def check_there(uri: str) -> None:
    """Raise `UserError` if the sqlite file of `uri` is missing, which MLflow would create."""
    file = sqlite_file(uri)
    with named_in_errors(variable_of(uri)):
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


def _probe_server(uri: str, write: bool) -> None:
    query = {"max_results": 1, "filter": f"name = '{EXPERIMENT}'", "view_type": "ALL"}
    answer = _answer(uri, "experiments/search", query)
    status = answer.status_code
    if status == 403:
        host = public_base(uri).partition("://")[2].partition("/")[0]
        raise UserError(
            f"the MLflow server at '{redact(uri)}' refuses this host name (403): start it with "
            f"--allowed-hosts {shlex.quote(host)}, or ask for the right to write"
        )
    if status == 401:
        raise UserError(
            f"the MLflow server at '{redact(uri)}' wants a login (401): set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
        )
    hint = proxy_hint(uri)
    if status >= 500 or status == 407:
        raise UserError(
            f"the server at '{redact(uri)}' answers with an error ({status}): "
            f"{hint or 'see its log, or give another --tracking-uri'}"
        )
    if status != 200 or "json" not in answer.headers.get("content-type", ""):
        raise UserError(
            f"what answers at '{redact(uri)}' is not an MLflow server (status {status}): "
            f"{hint or 'give the address of one as --tracking-uri'}"
        )
    if write:
        (found,) = answer.json().get("experiments") or [{}]
        check_active(found.get("experiment_id"), found.get("lifecycle_stage", "active"))
        _check_right_to_write(uri, found.get("experiment_id"))


def check_active(experiment: str | None, stage: str) -> None:
    """Raise `UserError` if the experiment's lifecycle stage is not `active`."""
    if stage != "active":
        raise UserError(
            f"the experiment '{EXPERIMENT}' was deleted in MLflow: restore it with mlflow "
            f"experiments restore -x {experiment}, or give another --tracking-uri"
        )


def _check_right_to_write(uri: str, experiment: str | None) -> None:
    """Raise `UserError` if the server refuses requests that would write if they were complete.

    A server checks the rights before the content, so that it refuses these for one reason or the
    other, and writes nothing.
    """
    name, body = "experiments/create", {}
    if experiment is not None:
        name, body = "experiments/update", {"experiment_id": experiment}  # without the new name
    for path, content in ((name, body), ("runs/update", {"run_id": NO_RUN})):
        status = _answer(uri, path, content).status_code
        if status in (401, 403, 405):
            raise UserError(
                f"the MLflow server at '{redact(uri)}' lets this user read and not write "
                f"({status} for {path}): ask for the right to edit the experiment "
                f"'{EXPERIMENT}', or give another --tracking-uri"
            )


def _answer(uri: str, path: str, body: dict[str, Any]) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        return request(uri, path, body, _REQUEST_SECONDS)
    except (MlflowException, OSError, ValueError) as error:
        remedy = proxy_hint(uri) or "start it, or give another --tracking-uri"
        raise UserError(
            f"no MLflow server answers at '{redact(uri)}' ({root_cause(error, uri)}): {remedy}"
        ) from None


def _probe_postgres(uri: str, write: bool) -> None:
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
    rights = [row for query in (_MAY_WRITE, _MAY_NUMBER) for row in query_postgres(uri, query)]
    if write and not all(allowed for (allowed,) in rights):
        raise UserError(
            f"the database '{redact(uri)}' lets this user read and not write: ask for the right, "
            "or give another --tracking-uri"
        )


def _probe_sqlite(uri: str, file: Path) -> None:
    if any(char in str(file) for char in "?#%"):
        raise UserError(f"tracking URI '{uri}': a path with ?, # or % does not fit in a URI")
    if file.is_dir():
        raise UserError(f"tracking URI '{uri}' is a folder: add a file name such as /mlflow.db")
    folder = next(parent for parent in file.parents if os.path.lexists(parent))
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
    try:
        file.open("r+b").close()
    except OSError as error:
        raise UserError(
            f"tracking URI '{uri}': the file cannot be written to ({error.strerror}): give another"
        ) from None
    tables = _sqlite_tables(uri, file)
    if tables and not {"experiments", "alembic_version"} <= tables:
        raise UserError(
            f"tracking URI '{uri}' is a database of something else than MLflow, or one that was "
            "interrupted while it was created: give another file, or move this one away"
        )
    check_version(uri)
    for row in query_sqlite(uri, file, _STAGE) if _revision(uri) else ():
        check_active(*row)


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
            f"make a backup and run mlflow db upgrade {shlex.quote(shown)}, or install "
            "the older MLflow, or give another --tracking-uri"
        )
    raise UserError(
        f"the MLflow store '{shown}' was made by a newer version than {here} (database schema "
        f"{revision}): run pip install -U mlflow, or give another --tracking-uri"
    )


def _revision(uri: str) -> str | None:
    rows = []
    if (file := sqlite_file(uri)) is not None:
        if file.is_file() and "alembic_version" in _sqlite_tables(uri, file):
            rows = query_sqlite(uri, file, _REVISION)
    elif uri.partition("://")[0].partition("+")[0] == "postgresql":
        rows = query_postgres(uri, _REVISION)
    return str(rows[0][0]) if len(rows) == 1 else None


def _sqlite_tables(uri: str, file: Path) -> set[str]:
    rows = query_sqlite(uri, file, "SELECT name FROM sqlite_master WHERE type = 'table'")
    return {str(name) for (name,) in rows}


def query_sqlite(uri: str, file: Path, query: str) -> list[Any]:
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


def query_postgres(uri: str, query: str) -> list[Any]:
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
