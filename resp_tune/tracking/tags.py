"""The tags of a search's runs in MLflow, and the filters that find the runs by them."""

from __future__ import annotations

import getpass
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from resp_tune.common.choices import Mode, State

Kind = Literal["trial", "replicate", "evaluation"]
ParentStatus = Literal["FINISHED", "FAILED", "KILLED"]


class Tag:
    """The names of the tags."""

    KIND = "resp_tune.kind"
    SEARCH = "resp_tune.search"
    STUDY = "resp_tune.study"
    NUMBER = "resp_tune.trial_number"
    REPLICATE = "resp_tune.replicate"
    STATE = "resp_tune.state"
    OUTER_FOLD = "resp_tune.outer_fold"
    METRIC = "resp_tune.metric"
    MODE = "resp_tune.mode"
    WEIGHTS = "resp_tune.weights_sha256"
    ENCODER = "resp_tune.encoder"  # its name; of a head's trials and models
    ENCODER_SHA256 = "resp_tune.encoder_sha256"
    ENCODER_LICENCE = "resp_tune.encoder_licence"
    ENCODER_SETTINGS = "resp_tune.encoder_settings_sha256"
    MICRO_BATCH = "resp_tune.micro_batch"  # that a trial ended with
    PARENT = "mlflow.parentRunId"


# An interrupted trial has not ended in the study: the next run of the command resumes it.
RUNNING, INTERRUPTED = "running", "interrupted"

STATUS: dict[State, ParentStatus] = {
    "finished": "FINISHED",
    "pruned": "KILLED",
    "diverged": "FAILED",
    "failed": "FAILED",
}


def encoder_tags(encoder: Mapping[str, str]) -> dict[str, str]:
    """Return the tags that describe an encoder `{name, sha256, licence}`."""
    return {
        Tag.ENCODER: encoder["name"],
        Tag.ENCODER_SHA256: encoder["sha256"],
        Tag.ENCODER_LICENCE: encoder["licence"],
    }


@dataclass(frozen=True)
class SearchRef:
    """The identity of a search in MLflow, and the metric that ranks its trials.

    `study_id` tells two searches of one name apart, such as one whose study was deleted and the
    one started after it, or those of the outer folds of a nested search. `parent_run` is the id of
    the run that the search's own run is below, if it is one of an outer fold.
    """

    name: str
    metric: str
    mode: Mode
    study_id: str | None = None
    outer_fold: int | None = None
    parent_run: str | None = None

    @property
    def tags(self) -> dict[str, str]:
        """Return the tags that all runs of the search carry."""
        tags = {Tag.SEARCH: self.name} | ({Tag.STUDY: self.study_id} if self.study_id else {})
        fold = {} if self.outer_fold is None else {Tag.OUTER_FOLD: str(self.outer_fold)}
        return tags | fold

    def runs_filter(self, kind: str | None = None) -> str:
        """Return MLflow's filter of the search's runs, or of those of one kind."""
        return conditions(self.tags | ({Tag.KIND: kind} if kind else {}))


def conditions(tags: Mapping[str, str]) -> str:
    """Return MLflow's filter of the runs that carry all these tags."""
    return " and ".join(f"tags.`{tag}` = '{value}'" for tag, value in tags.items())


def origin() -> dict[str, str]:
    """Return the tags that the UI shows as source and user of a run."""
    tags = {"mlflow.source.name": "resp_tune.search", "mlflow.source.type": "LOCAL"}
    with suppress(KeyError, OSError):  # the user of a container may have no name
        tags["mlflow.user"] = getpass.getuser()
    return tags
