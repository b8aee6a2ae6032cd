"""A trial's run read back from MLflow: enough to run it again."""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass
from typing import Any

from resp_tune.data.split_spec import SplitSpec
from resp_tune.errors import UserError
from resp_tune.tracking.client import connect
from resp_tune.tracking.store_probe import check_there, probe
from resp_tune.tracking.tags import KIND, MICRO_BATCH, PARENT
from resp_tune.tracking.uri import redact, root_cause

THREADS = "resp_tune.threads"
DEVICE = "resp_tune.device"


@dataclass(frozen=True)
class TrialRun:
    """The trial config's fields, its task, the settings and hash of its sides, its threads.

    `task_classes` are the diagnoses by class; None where the run has none, or none that can be
    read. `on_cpu`: whether it was trained on the CPU, whose bits no GPU repeats.
    """

    config: dict[str, Any]
    task: str
    task_classes: Any
    split_spec: SplitSpec
    split_sha256: str
    threads: int
    on_cpu: bool


def trial_run(uri: str, run_id: str) -> TrialRun:
    """The run `run_id` of a search; raises `UserError` when it is not there or not a trial."""
    check_there(uri)
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
            f"--run {run_id} is not in '{redact(uri)}' ({root_cause(error, uri)}): give a run id "
            "from trials.csv, and --tracking-uri where the search had one"
        ) from None
    params, tags = parent.data.params, run.data.tags
    config = {name: _value(text) for name, text in run.data.params.items()}
    if MICRO_BATCH in tags:
        config["micro_batch"] = _value(tags[MICRO_BATCH])
    return TrialRun(
        config=config,
        task=params["task"],
        task_classes=_classes(params.get("task_classes")),
        split_spec=SplitSpec.from_dict({name: _value(text) for name, text in params.items()}),
        split_sha256=params["split_sha256"],
        threads=int(tags.get(THREADS, "1")),
        on_cpu=tags.get(DEVICE, "").startswith("cpu"),
    )


def _classes(text: str | None) -> Any:
    try:
        return json.loads(text or "null")
    except (ValueError, RecursionError):
        return None


def _value(text: str) -> Any:
    """MLflow keeps text; what was a number, a boolean or None becomes it again."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
