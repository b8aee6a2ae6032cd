"""MLflow: what a batch and a trial cost, on a sqlite file and on a server with PostgreSQL."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from resp_tune.common.trial_key import TrialKey
from resp_tune.config import preset
from resp_tune.errors import RunError, UserError
from resp_tune.tracking.search_run import SearchRuns
from resp_tune.tracking.store_probe import probe
from resp_tune.tracking.tags import SearchRef
from resp_tune.tracking.uri import redact, root_cause
from scaling.events import Tracker
from scaling.sizes import Sizes
from scaling.studies import METRIC, row

log = logging.getLogger("resp_tune")

SQLITE, SERVER = "MLflow on sqlite", "MLflow server on PostgreSQL"
PATIENCE = 600.0
LARGE = 12  # epochs in one batch, as where epochs are short


def measure(folder: Path, sizes: Sizes, postgres: str | None) -> tuple[dict[str, Tracker], str]:
    """The costs of each store, and a line where the server was left out."""
    place = Path(tempfile.mkdtemp(prefix="tracked-", dir=folder))
    found = {SQLITE: _costs(f"sqlite:///{place / 'mlflow.db'}", place, sizes)}
    if postgres is None:
        return found, "the server on PostgreSQL was left out (--postgres none)"
    try:
        with _database(postgres) as (name, address), _server(address, place) as uri:
            log.info(f"MLflow's server on the database {name}")
            found[SERVER] = _costs(uri, place, sizes)
    except UserError as error:
        return found, f"the server on PostgreSQL was left out: {error}"
    return found, ""


def _costs(uri: str, place: Path, sizes: Sizes) -> Tracker:
    trials, batches = sizes.tracked_trials, sizes.tracked_batches
    runs = SearchRuns(uri, place, SearchRef("tracked", METRIC, "max"), params={})
    params = preset("notebook").as_dict()
    del params["seed"]
    numbers = iter(range(10**6))

    def spent(trials: int, batches: int, epochs: int) -> float:
        started = time.perf_counter()
        for _ in range(trials):
            number = next(numbers)
            key = TrialKey(number)
            runs.start_trial(key, params=params, seed=number)
            for batch in range(batches):
                first = 1 + batch * epochs
                runs.log_epochs(key, [row(number, first + e) for e in range(epochs)])
                runs.run_ids(seconds=PATIENCE)  # or the next would go into the same batch
            runs.end_trial(key, "finished", score=0.5, seconds=1.0)
        runs.run_ids(seconds=PATIENCE)
        return (time.perf_counter() - started) / trials

    spent(2, 1, 1)  # connections are opened
    few = max(2, trials // 10)
    one, many, large = spent(trials, 1, 1), spent(few, batches, 1), spent(few, batches, LARGE)
    runs.close("FINISHED", seconds=PATIENCE)
    small = max(0.0, (many - one) / (batches - 1))
    epoch = max(0.0, (large - many) / batches / (LARGE - 1))
    return Tracker(batch=max(0.0, small - epoch), epoch=epoch, trial=max(0.0, one - small))


@contextmanager
def _database(postgres: str) -> Iterator[tuple[str, str]]:
    """A database of our own, gone afterwards; its name and address."""
    try:
        import psycopg
    except ImportError:
        raise UserError("psycopg is not installed (the extra `cluster` has it)") from None
    name = f"resp_tune_scale_{secrets.token_hex(4)}"
    try:
        with psycopg.connect(postgres, connect_timeout=3, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{name}"')
    except psycopg.Error as error:
        raise UserError(f"'{redact(postgres)}': {root_cause(error, postgres)}") from None
    scheme, _, rest = postgres.partition("://")
    place, _, query = rest.partition("?")
    server = place.rpartition("/")[0] or place
    try:
        address = f"{scheme.partition('+')[0]}+psycopg://{server}/{name}"
        yield name, f"{address}?{query}" if query else address
    finally:
        with psycopg.connect(postgres, connect_timeout=30, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@contextmanager
def _server(store: str, place: Path) -> Iterator[str]:
    """The recipes' MLflow server, on this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    # In the environment, not on the command line, which everybody can read.
    environment = {
        **os.environ,
        "MLFLOW_BACKEND_STORE_URI": store,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
    }
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "2", "--port", str(port)]
    command += ["--artifacts-destination", str(place / "artifacts")]
    log_file = place / "server.log"
    with log_file.open("ab") as log:
        process = subprocess.Popen(  # noqa: S603  # our own arguments
            command, cwd=place, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    uri = f"http://127.0.0.1:{port}"
    try:
        _await(uri, process, log_file)
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _await(uri: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + PATIENCE / 4
    while process.poll() is None and time.monotonic() < until:
        try:
            probe(uri)
        except UserError:
            time.sleep(0.2)
        else:
            return
    raise RunError(f"MLflow's server did not start: {log.read_text()[-300:]}")
