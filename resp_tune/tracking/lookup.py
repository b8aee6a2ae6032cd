"""A trial's run read back from MLflow: enough to run it again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from resp_tune.errors import UserError
from resp_tune.tracking.client import connect
from resp_tune.tracking.names import KIND, PARENT
from resp_tune.tracking.store import probe
from resp_tune.tracking.uri import redact, root_cause

THREADS = "resp_tune.threads"
_SETTINGS = ("task", "protocol", "folds", "split_seed", "hold_out_device", "drop_shared_patients")


@dataclass(frozen=True)
class TrialRun:
    """The trial config's fields, the settings of the sides, the threads it had."""

    config: dict[str, Any]
    settings: dict[str, Any]
    threads: int


def trial_run(uri: str, run_id: str) -> TrialRun:
    """The run `run_id` of a search; raises `UserError` when it is not there or not a trial."""
    from mlflow.exceptions import MlflowException

    probe(uri)
    client = connect(uri)
    try:
        run = client.get_run(run_id)
        if run.data.tags.get(KIND) not in ("trial", "replicate"):
            raise UserError(f"--run {run_id} is not the run of a trial: give one from trials.csv")
        parent = client.get_run(run.data.tags[PARENT])
    except MlflowException as error:
        raise UserError(
            f"--run {run_id} is not in '{redact(uri)}' ({root_cause(error)}): give a run id from "
            "trials.csv, and --tracking-uri where the search had one"
        ) from None
    settings = {k: v for k, v in _plain(parent.data.params).items() if k in _SETTINGS}
    return TrialRun(_plain(run.data.params), settings, int(run.data.tags.get(THREADS, "1")))


def _plain(params: dict[str, str]) -> dict[str, Any]:
    """MLflow keeps text; what was a number, a boolean or nothing becomes it again."""
    return {name: None if text == "None" else yaml.safe_load(text) for name, text in params.items()}
