"""Whether the MLflow store of a search can be written to, before anything is written.

uri = resolve_uri(None, Path("results"))  # sqlite:////…/results/mlflow.db
probe(uri)  # UserError within some 5 s; writes nothing
"""

from __future__ import annotations

import os
import sqlite3
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

from resp_tune.errors import UserError
from resp_tune.tracking.client import quiet
from resp_tune.tracking.uri import (
    is_server,
    public_base,
    redact,
    resolve_uri,
    root_cause,
    sqlite_file,
)

__all__ = ["probe", "redact", "resolve_uri"]

PROBE_SECONDS = 5.0
_REQUEST_SECONDS = 4
_SUPPORTED = "http://, https://, postgresql:// or sqlite:///"


def probe(uri: str) -> None:
    """Raise `UserError` where `uri` cannot be written to; creates nothing.

    Takes about `PROBE_SECONDS` at most, also for a host that never answers.
    """
    # Not `urlsplit`, which refuses passwords with brackets in them, and shows them.
    scheme = uri.partition("://")[0] if "://" in uri else ""
    if is_server(uri):
        _within(PROBE_SECONDS, _probe_server, uri)
    elif (file := sqlite_file(uri)) is not None:
        _probe_sqlite(uri, file)
    elif scheme.partition("+")[0] == "postgresql":
        _within(PROBE_SECONDS, _probe_postgres, uri)
    elif scheme in ("", "file"):
        file = Path(uri.removeprefix("file://")).absolute()
        raise UserError(
            f"tracking URI '{redact(uri)}' is a path: MLflow no longer writes folders of files; "
            f"give sqlite:///{file.with_suffix('.db')} or the http:// address of a server"
        )
    else:
        raise UserError(f"tracking URI '{redact(uri)}' is not supported: give {_SUPPORTED}")


def check_there(uri: str) -> None:
    """Raise `UserError` where the sqlite file of `uri` is missing, which mlflow would make."""
    file = sqlite_file(uri)
    if file is not None and not file.is_file():
        raise UserError(
            f"there is no MLflow store '{file}': run a search first (bash scripts/search), or "
            "give its --tracking-uri"
        )


def _within(seconds: float, check: Callable[[str], None], uri: str) -> None:
    # On a thread of its own, because no socket timeout bounds the look-up of a host name.
    failures: list[BaseException] = []

    def body() -> None:
        try:
            check(uri)
        except BaseException as error:  # carried to the caller's thread, raised there
            failures.append(error)

    # The first import of mlflow takes a second or more, which is not the server's time.
    quiet()
    import mlflow.utils.rest_utils  # noqa: F401

    thread = threading.Thread(target=body, name="mlflow-probe", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise UserError(
            f"tracking URI '{redact(uri)}' did not answer within {seconds:g} s: "
            "start it, or give another --tracking-uri"
        )
    if failures:
        raise failures[0]


def _probe_server(uri: str) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        # mlflow's own request, so that its tokens, certificates and proxies count here as well.
        answer = http_request(  # type: ignore[no-untyped-call]  # mlflow has no annotation here
            get_default_host_creds(uri),  # type: ignore[no-untyped-call]  # nor here
            "/api/2.0/mlflow/experiments/search",
            "POST",
            timeout=_REQUEST_SECONDS,
            max_retries=0,
            raise_on_status=False,
            json={"max_results": 1},
        )
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


def _probe_sqlite(uri: str, file: Path) -> None:
    if any(char in str(file) for char in "?#%"):
        raise UserError(f"tracking URI '{uri}': a path with ?, # or % does not fit in a URI")
    if file.is_dir():
        raise UserError(f"tracking URI '{uri}' is a folder: add a file name such as /mlflow.db")
    folder = next(parent for parent in file.parents if parent.exists())
    try:  # tried, as what permissions say does not bind everybody
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
    tables = _tables(uri, file)
    if tables and not {"experiments", "alembic_version"} <= tables:
        raise UserError(
            f"tracking URI '{uri}' is a database of something else than MLflow, or one that was "
            "cut off while it was made: give another file, or move this one away"
        )


def _tables(uri: str, file: Path) -> set[str]:
    try:
        connection = sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True, timeout=_REQUEST_SECONDS)
        try:
            rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
            return {str(name) for (name,) in rows}
        finally:
            connection.close()
    except sqlite3.Error as error:
        if "locked" in str(error):
            raise UserError(
                f"tracking URI '{uri}' is locked by another program: close that one, or wait for "
                "it, or give another --tracking-uri"
            ) from None
        raise UserError(
            f"tracking URI '{uri}' cannot be read as a sqlite database ({error}): give another, or "
            "move it away, as the same command makes it again from the study"
        ) from None
