"""Read a trial's run from MLflow, to run the trial again."""

from __future__ import annotations

import ast
import json
from dataclasses import dataclass
from typing import Any

from resp_tune.data.split_spec import SplitSpec
from resp_tune.errors import UserError
from resp_tune.tracking.client import connect
from resp_tune.tracking.moved_store import readable
from resp_tune.tracking.store_probe import check_there, probe
from resp_tune.tracking.tags import Tag
from resp_tune.tracking.uri import redact, root_cause

THREADS = "resp_tune.threads"
DEVICE = "resp_tune.device"


@dataclass(frozen=True)
class TrialRun:
    """What a run records of its trial: config, task, split and the conditions of training.

    `task_classes` holds the diagnoses by class, None if the run has none or they are unreadable.
    With `on_cpu` a GPU cannot repeat the score to the last bit. `own_folds` is the number of a
    trial that had inner folds of its own (`--reshuffle`), else None. `encoder_sha256` is the hash
    of its encoder's file, `encoder_settings_sha256` that of the settings it was used with.
    """

    config: dict[str, Any]
    task: str
    task_classes: Any
    split_spec: SplitSpec
    split_sha256: str
    threads: int
    on_cpu: bool
    own_folds: int | None = None
    encoder_sha256: str | None = None
    encoder_settings_sha256: str | None = None


def load_trial_run(uri: str, run_id: str) -> TrialRun:
    """Return the run `run_id`; `UserError` if it is missing or not the run of a trial."""
    check_there(uri)
    from mlflow.exceptions import MlflowException

    with readable(uri) as opened:
        probe(opened, write=False)
        client = connect(opened)
        try:
            run = client.get_run(run_id)
            if run.data.tags.get(Tag.KIND) not in ("trial", "replicate"):
                raise UserError(
                    f"--run {run_id} is not the run of a trial: give one from trials.csv"
                )
            parent = client.get_run(run.data.tags[Tag.PARENT])
        except MlflowException as error:
            raise UserError(
                f"there is no --run {run_id} in '{redact(uri)}' ({root_cause(error, uri)}): give a "
                "run id from trials.csv, and the --tracking-uri of the search if it had one"
            ) from None
    params, tags = parent.data.params, run.data.tags
    reshuffled = params.get("reshuffle") == "True"
    config = {name: _value(text) for name, text in run.data.params.items()}
    if Tag.MICRO_BATCH in tags:
        config["micro_batch"] = _value(tags[Tag.MICRO_BATCH])
    return TrialRun(
        config=config,
        task=params["task"],
        task_classes=_classes(params.get("task_classes")),
        split_spec=SplitSpec.from_dict({name: _value(text) for name, text in params.items()}),
        split_sha256=params["split_sha256"],
        threads=int(tags.get(THREADS, "1")),
        on_cpu=tags.get(DEVICE, "").startswith("cpu"),
        own_folds=int(tags[Tag.NUMBER]) if reshuffled and tags[Tag.KIND] == "trial" else None,
        encoder_sha256=tags.get(Tag.ENCODER_SHA256),
        encoder_settings_sha256=tags.get(Tag.ENCODER_SETTINGS),
    )


def _classes(text: str | None) -> Any:
    try:
        return json.loads(text or "null")
    except (ValueError, RecursionError):
        return None


def _value(text: str) -> Any:
    """Convert MLflow's text back to a number, a boolean or None if it was one."""
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
