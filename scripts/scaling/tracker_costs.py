"""Measure MLflow: the cost of a batch and of a trial, on sqlite and on a server with PostgreSQL."""

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
from scaling.simulation import TrackerCosts
from scaling.sizes import Sizes
from scaling.study_costs import METRIC, epoch_row

log = logging.getLogger("resp_tune")

SQLITE, SERVER = "MLflow on sqlite", "MLflow server on PostgreSQL"
TIMEOUT_SECONDS = 600.0
LARGE_BATCH = 12  # epochs, as in a search with short epochs


def measure(
    folder: Path, sizes: Sizes, postgres: str | None
) -> tuple[dict[str, TrackerCosts], str]:
    """Return the costs by tracker, and why the server was left out (empty if it was measured)."""
    temporary = Path(tempfile.mkdtemp(prefix="tracker-", dir=folder))
    sqlite = f"sqlite:///{temporary / 'mlflow.db'}"
    costs = {SQLITE: _measure_tracker(sqlite, temporary, sizes)}
    if postgres is None:
        return costs, "the server on PostgreSQL was left out (--postgres none)"
    try:
        with (
            _temporary_database(postgres) as (name, address),
            _mlflow_server(address, temporary) as uri,
        ):
            log.info(f"measuring MLflow's server on the database {name}")
            costs[SERVER] = _measure_tracker(uri, temporary, sizes)
    except UserError as error:
        return costs, f"the server on PostgreSQL was left out: {error}"
    return costs, ""


def _measure_tracker(uri: str, folder: Path, sizes: Sizes) -> TrackerCosts:
    trials, batches = sizes.tracked_trials, sizes.tracked_batches
    runs = SearchRuns(uri, folder, SearchRef("tracked", METRIC, "max"), params={})
    params = preset("notebook").as_dict()
    del params["seed"]
    numbers = iter(range(10**6))

    def seconds_per_trial(trials: int, batches: int, epochs: int) -> float:
        started = time.perf_counter()
        for _ in range(trials):
            number = next(numbers)
            key = TrialKey(number)
            runs.trials.start_trial(key, params=params, seed=number)
            for batch in range(batches):
                first = 1 + batch * epochs
                runs.trials.log_epochs(key, [epoch_row(number, first + e) for e in range(epochs)])
                runs.run_ids(seconds=TIMEOUT_SECONDS)  # else the next joins the same batch
            runs.trials.end_trial(key, "finished", score=0.5, seconds=1.0)
        runs.run_ids(seconds=TIMEOUT_SECONDS)
        return (time.perf_counter() - started) / trials

    seconds_per_trial(2, 1, 1)  # opens the connections
    few = max(2, trials // 10)
    one_batch = seconds_per_trial(trials, 1, 1)
    small_batches = seconds_per_trial(few, batches, 1)
    large_batches = seconds_per_trial(few, batches, LARGE_BATCH)
    runs.close("FINISHED", seconds=TIMEOUT_SECONDS)
    small = max(0.0, (small_batches - one_batch) / (batches - 1))
    epoch = max(0.0, (large_batches - small_batches) / batches / (LARGE_BATCH - 1))
    return TrackerCosts(
        batch=max(0.0, small - epoch), epoch=epoch, trial=max(0.0, one_batch - small)
    )


@contextmanager
def _temporary_database(postgres: str) -> Iterator[tuple[str, str]]:
    """Create a database, yield its name and URI, and drop it."""
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
    location, _, query = rest.partition("?")
    server = location.rpartition("/")[0] or location
    try:
        address = f"{scheme.partition('+')[0]}+psycopg://{server}/{name}"
        yield name, f"{address}?{query}" if query else address
    finally:
        with psycopg.connect(postgres, connect_timeout=30, autocommit=True) as connection:
            connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@contextmanager
def _mlflow_server(backend_store: str, folder: Path) -> Iterator[str]:
    """Start an MLflow server as in scripts/cluster, yield its URI, and kill it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    # The URI may hold a password: every user can read a command line, but not the environment.
    environment = {
        **os.environ,
        "MLFLOW_BACKEND_STORE_URI": backend_store,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
    }
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "2", "--port", str(port)]
    command += ["--artifacts-destination", str(folder / "artifacts")]
    log_file = folder / "server.log"
    with log_file.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603  # our own arguments
            command,
            cwd=folder,
            stdout=output,
            stderr=output,
            env=environment,
            start_new_session=True,
        )
    uri = f"http://127.0.0.1:{port}"
    try:
        _wait_for_server(uri, process, log_file)
        yield uri
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _wait_for_server(uri: str, process: subprocess.Popen[bytes], log_file: Path) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS / 4
    while process.poll() is None and time.monotonic() < deadline:
        try:
            probe(uri)
        except UserError:
            time.sleep(0.2)
        else:
            return
    raise RunError(f"MLflow's server did not start: {log_file.read_text()[-300:]}")
