"""The settings of a search, as its flags give them."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from typing import Any

from resp_tune.common.choices import METRICS, PROTOCOLS, SAMPLERS, SCHEDULERS, TASK_FILES, TASKS
from resp_tune.errors import UserError, nearest
from resp_tune.storage.object_store import ObjectPath, is_uri

MOST_REPLICATES = 100

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


def in_a_job() -> bool:
    """Whether this process was started by Ray's job API, inside a cluster."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def check_search_name(name: str) -> None:
    """Raise `UserError` where no search can have this name."""
    if not _NAME.fullmatch(name):
        raise UserError(
            f"--name {name[:80]!r} is not a name: 1 to 64 letters, digits, '.', '_' or '-', the "
            "first a letter or digit"
        )


@dataclass(frozen=True)
class SearchOptions:
    """One field a flag; see `python -m resp_tune.search --help`. Durations are in seconds.

    `task` is what was typed, a name or a file: `find_task` gives the task.
    """

    data: str | None = None
    task: str = "diagnosis"
    protocol: str = "patient"
    metric: str = "macro_f1"
    folds: int = 1
    split_seed: int = 0
    hold_out_device: str | None = None
    drop_shared_patients: bool = False
    space: str = "search_spaces/default.yaml"
    trials: int | None = None
    epochs: int = 20
    time_budget: float | None = None
    trial_timeout: float | None = None
    gpus: int | None = None
    trials_per_gpu: int | None = 1  # None: measured
    concurrency: int | None = None
    cpus_per_trial: float | None = None
    address: str = "local"
    wait_for_gpus: float | None = None
    scheduler: str = "asha"
    sampler: str = "tpe"
    replicates: int = 1
    name: str | None = None
    storage: str = "results"
    tracking_uri: str | None = None
    seed: int = 0
    dry_run: bool = False

    def __post_init__(self) -> None:
        for what, given, known in (
            ("task", self.task, TASKS),
            ("protocol", self.protocol, PROTOCOLS),
            ("metric", self.metric, METRICS),
            ("scheduler", self.scheduler, SCHEDULERS),
            ("sampler", self.sampler, SAMPLERS),
        ):
            if given not in known and not (what == "task" and given.endswith(TASK_FILES)):
                hint = nearest(given, known)
                listed = "" if hint.startswith("known") else f" (known: {', '.join(known)})"
                also = ", or a .yaml file that groups diagnoses" if what == "task" else ""
                raise UserError(
                    f"--{what} '{given}' is not one that is built: {hint}{listed}{also}"
                )
        if self.name is not None:
            check_search_name(self.name)
        if not 1 <= self.folds <= 4:
            raise UserError(f"--folds {self.folds} is outside 1 to 4")
        if not 1 <= self.replicates <= MOST_REPLICATES:
            raise UserError(f"--replicates {self.replicates} is outside 1 to {MOST_REPLICATES}")
        if self.metric == "icbhi_score" and self.task != "cycles":
            raise UserError("--metric icbhi_score needs --task cycles")
        if self.wait_for_gpus is not None and (self.address == "local" or not self.gpus):
            raise UserError(
                "--wait-for-gpus waits for a cluster to grow: give --address and --gpus N with it"
            )
        if is_uri(self.storage):
            ObjectPath.parse("--storage", self.storage)

    @property
    def budget(self) -> int | None:
        """Trials in all; None where a time budget alone decides."""
        if self.trials is None and self.time_budget is None:
            return 20
        return self.trials

    def split(self) -> dict[str, Any]:
        """What the sides of this data follow from, beside task and protocol."""
        names = ("split_seed", "folds", "hold_out_device", "drop_shared_patients")
        return {name: getattr(self, name) for name in names}

    @property
    def named(self) -> str:
        """The name, or a timestamp."""
        return self.name or time.strftime("%Y%m%d-%H%M%S")


RECORDED = (
    "protocol",
    "metric",
    "folds",
    "split_seed",
    "hold_out_device",
    "drop_shared_patients",
    "epochs",
    "seed",
    "scheduler",
    "sampler",
    "replicates",
)


def recorded_options(options: SearchOptions) -> dict[str, Any]:
    """Return the options that MLflow records as parameters of the search."""
    return {name: getattr(options, name) for name in RECORDED}
