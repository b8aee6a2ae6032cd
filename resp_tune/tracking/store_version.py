"""Check which MLflow made a store before MLflow opens it.

MLflow migrates the database of an older version in place at the first touch, also a read, after
which the older version cannot open it. So the schema's revision is read first, read-only.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

from resp_tune.errors import UserError
from resp_tune.tracking.mlflow_internals import known_schemas
from resp_tune.tracking.uri import redact, sqlite_file

_QUERY = "SELECT version_num FROM alembic_version"
_LOCK_SECONDS = 4


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
    if (file := sqlite_file(uri)) is not None:
        known = file.is_file() and query_sqlite(
            uri, file, "SELECT name FROM sqlite_master WHERE name = 'alembic_version'"
        )
        rows = query_sqlite(uri, file, _QUERY) if known else []
    elif uri.partition("://")[0].partition("+")[0] == "postgresql":
        rows = _query_postgres(uri)
    else:
        return None
    return str(rows[0][0]) if len(rows) == 1 else None


def query_sqlite(uri: str, file: Path, query: str) -> list[tuple[Any, ...]]:
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


def _rows(file: Path, mode: str, query: str) -> list[tuple[Any, ...]]:
    address = f"{file.as_uri()}?mode={mode}"
    with closing(sqlite3.connect(address, uri=True, timeout=_LOCK_SECONDS)) as connection:
        return connection.execute(query).fetchall()


def _query_postgres(uri: str) -> list[tuple[Any, ...]]:
    import sqlalchemy

    try:
        engine = sqlalchemy.create_engine(uri, connect_args={"connect_timeout": _LOCK_SECONDS})
        try:
            with engine.connect() as connection:
                return [tuple(row) for row in connection.execute(sqlalchemy.text(_QUERY))]
        finally:
            engine.dispose()
    except (sqlalchemy.exc.SQLAlchemyError, ImportError, ValueError):
        return []  # a new database, or one that cannot be reached
