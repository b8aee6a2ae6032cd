"""The tags of a search's runs in MLflow, and the queries made of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from resp_tune.common.choices import State

Kind = Literal["trial", "replicate", "evaluation"]
ParentStatus = Literal["FINISHED", "FAILED", "KILLED"]

KIND = "resp_tune.kind"
SEARCH = "resp_tune.search"
STUDY = "resp_tune.study"
NUMBER = "resp_tune.trial_number"
STATE = "resp_tune.state"
METRIC = "resp_tune.metric"
MODE = "resp_tune.mode"
WEIGHTS = "resp_tune.weights_sha256"
MICRO_BATCH = "resp_tune.micro_batch"  # that a trial ended with
PARENT = "mlflow.parentRunId"

# An interrupted trial has no end in the study: it goes on with the next run of the command.
RUNNING, INTERRUPTED = "running", "interrupted"

STATUS: dict[State, ParentStatus] = {
    "finished": "FINISHED",
    "pruned": "KILLED",
    "diverged": "FAILED",
    "failed": "FAILED",
}


def runs_filter(name: str, study_id: str | None = None, kind: str | None = None) -> str:
    """MLflow's filter of a search's runs; with `study_id`, not those of a namesake."""
    wanted = {SEARCH: name, STUDY: study_id, KIND: kind}
    return conditions({tag: value for tag, value in wanted.items() if value is not None})


def conditions(tags: Mapping[str, str]) -> str:
    """MLflow's filter of the runs that carry all these tags."""
    return " and ".join(f"tags.`{tag}` = '{value}'" for tag, value in tags.items())
