"""MLflow stores of the tests, and what a search writes to them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import Run

from resp_tune.errors import UserError
from resp_tune.tracking.search_run import SearchRuns
from resp_tune.tracking.store_probe import probe
from resp_tune.tracking.tags import SearchRef

SHARED = "RESP_TUNE_TEST_SHARED"  # the folder of all processes that run tests
PARAMS = {"lr": 0.003, "n_mels": 48, "pad": "repeat", "micro_batch": None}


def epoch(number: int, value: float) -> dict[str, float]:
    return {"epoch": number, "train_loss": 1 / number, "val_macro_f1": value, "lr": 1e-3}


def open_search(uri: str, storage: Path, name: str = "first", **more: Any) -> SearchRuns:
    search = SearchRef(name, "macro_f1", more.pop("mode", "max"), more.pop("study_id", None))
    more = {"params": {"trials": 4}, **more}
    return SearchRuns(uri, storage, search, **more)


def all_runs(uri: str) -> dict[str, Run]:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("resp_tune")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    assert len({run.info.run_name for run in runs}) == len(runs), "duplicates"
    return {run.info.run_name: run for run in runs}


@contextmanager
def mlflow_server(
    folder: Path, port: int, host: str = "127.0.0.1", inside: Sequence[str] = (), store: str = ""
) -> Iterator[str]:
    """`store`: its database, one in `folder` by default. `inside`: what it is put behind."""
    command = [*inside, sys.executable, "-m", "mlflow", "server", "--workers", "1"]
    command += ["--host", host, "--port", str(port), "--allowed-hosts", f"{host}:{port}"]
    command += ["--backend-store-uri", store or f"sqlite:///{folder}/server.db"]
    command += ["--artifacts-destination", f"{folder}/artifacts"]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    environment |= {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    address = f"http://{host}:{port}"
    try:
        for _ in range(600):
            assert process.poll() is None, (folder / "server.log").read_text()
            try:
                probe(address)
                break
            except UserError:
                time.sleep(0.2)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def template() -> Path:
    """Return an empty store, made once for all processes that run tests.

    MLflow takes 2 s of CPU to make its tables.
    """
    file = Path(os.environ[SHARED]) / "mlflow-template.db"
    with FileLock(f"{file}.lock"):
        if not file.exists():
            made = file.with_suffix(".part")
            MlflowClient(f"sqlite:///{made}").search_experiments(max_results=1)
            made.rename(file)
    return file


def with_mlflow_store(storage: Path) -> Path:
    """Make the folder `storage` with an empty store, as a search there makes its own."""
    storage.mkdir(parents=True, exist_ok=True)
    if not (storage / "mlflow.db").exists():
        shutil.copy(template(), storage / "mlflow.db")
    return storage
