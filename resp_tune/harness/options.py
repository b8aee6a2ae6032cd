"""The options of a search: one field per flag, with its default, bounds and help text."""

from __future__ import annotations

import dataclasses
import os
import re
import time
from dataclasses import dataclass
from typing import Any

from resp_tune.common.choices import METRICS, SAMPLERS, SCHEDULERS, TASK_FILES, TASKS
from resp_tune.config import bounded, setting
from resp_tune.data.split_spec import SplitSpec
from resp_tune.errors import UserError, nearest
from resp_tune.storage.object_store import ObjectPath, is_uri

DEFAULT_TRIALS = 20
MAX_COUNT = 10**18
MAX_SEED = 2**63 - 1

_DATA, _TRIALS, _COMPUTE, _RESULTS = GROUPS = ("data and metric", "trials", "compute", "results")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)


def in_ray_job() -> bool:
    """Return whether Ray's job API started this process, inside a cluster."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def check_search_name(name: str) -> None:
    """Raise `UserError` if no search can have this name."""
    if not _NAME.fullmatch(name):
        raise UserError(
            f"--name {name[:80]!r} is not a name: use 1 to 64 letters, digits, '.', '_' or '-', "
            "starting with a letter or digit"
        )


@dataclass(frozen=True)
class SearchOptions(SplitSpec):
    """What the flags of `python -m resp_tune.search` set. Durations are in seconds.

    `task` is a name or a file (`find_task` reads it). `trials_per_gpu` None: measured.
    """

    data: str | None = setting(
        None,
        "folder or URI of the recordings (default: $RESP_TUNE_DATA, else a small synthetic set)",
        metavar="PATH",
        group=_DATA,
    )
    task: str = setting(
        "diagnosis",
        f"{', '.join(TASKS)}, or a YAML file that groups diagnoses into other classes",
        metavar="NAME or FILE",
        choices=TASKS,
        group=_DATA,
    )
    metric: str = setting("macro_f1", ", ".join(METRICS), choices=METRICS, group=_DATA)
    space: str = setting(
        "search_spaces/default.yaml", "search space, a YAML file", metavar="FILE", group=_TRIALS
    )
    trials: int | None = bounded(
        None,
        1,
        MAX_COUNT,
        "total number of trials, including earlier runs of this name (default: "
        f"{DEFAULT_TRIALS}; unlimited with --time-budget)",
        metavar="N",
        group=_TRIALS,
    )
    epochs: int = bounded(
        20, 1, MAX_COUNT, "epochs per trial, the length of its OneCycle schedule",
        metavar="N", group=_TRIALS,
    )  # fmt: skip
    time_budget: float | None = setting(
        None,
        "time after which no trial starts and running trials are pruned; replicates still run",
        metavar="30m",
        duration=True,
        group=_TRIALS,
    )
    trial_timeout: float | None = setting(
        None,
        "time after which a trial fails, also if it hangs; the search continues",
        metavar="10m",
        duration=True,
        group=_TRIALS,
    )
    scheduler: str = setting("asha", ", ".join(SCHEDULERS), choices=SCHEDULERS, group=_TRIALS)
    sampler: str = setting("tpe", ", ".join(SAMPLERS), choices=SAMPLERS, group=_TRIALS)
    replicates: int = bounded(
        1,
        1,
        100,
        "train the best four trials again with R new seeds each, and select the winner by mean "
        "minus standard error; 1: no replicates",
        metavar="R",
        group=_TRIALS,
    )
    seed: int = bounded(
        0, 0, MAX_SEED, "seed of the sampler and of the trials", metavar="N", group=_TRIALS
    )
    gpus: int | None = bounded(
        None, 0, MAX_COUNT, "GPUs used at once, 0 for the CPU (default: all)",
        metavar="N", group=_COMPUTE,
    )  # fmt: skip
    trials_per_gpu: int | None = bounded(
        1,
        1,
        MAX_COUNT,
        "concurrent trials per GPU; auto: benchmark the GPUs before the search",
        metavar="K",
        auto=True,
        group=_COMPUTE,
    )
    concurrency: int | None = bounded(
        None, 1, MAX_COUNT, "concurrent trials (default: from the machine)",
        metavar="N", group=_COMPUTE,
    )  # fmt: skip
    cpus_per_trial: float | None = setting(
        None, "CPU cores per trial, may be a fraction (default: from the machine)",
        metavar="X", group=_COMPUTE,
    )  # fmt: skip
    address: str | None = setting(
        None,
        "address of a running Ray cluster, or auto for the one this node belongs to (default: "
        "local, a private Ray; auto inside a Ray job)",
        metavar="local, auto or HOST:PORT",
        group=_COMPUTE,
    )
    wait_for_gpus: float | None = setting(
        None,
        "how long to wait until the cluster has --gpus GPUs",
        metavar="10m",
        duration=True,
        group=_COMPUTE,
    )
    name: str | None = setting(None, "name of the search (default: a timestamp)", group=_RESULTS)
    storage: str = setting(
        "results",
        "folder in which the folder NAME is made, or s3://BUCKET/PREFIX, gs://…, abfs://… (see "
        "docs/storage.md)",
        metavar="PATH or URI",
        group=_RESULTS,
    )
    tracking_uri: str | None = setting(
        None,
        "MLflow tracking URI (default: $MLFLOW_TRACKING_URI, else sqlite:///STORAGE/mlflow.db)",
        metavar="URI",
        group=_RESULTS,
    )
    dry_run: bool = setting(
        False, "check everything and print the plan; start and write nothing", group=_RESULTS
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in dataclasses.fields(SearchOptions):
            if known := field.metadata.get("choices"):
                _check_choice(field.name, getattr(self, field.name), known)
        if self.name is not None:
            check_search_name(self.name)
        if self.metric == "icbhi_score" and self.task != "cycles":
            raise UserError("--metric icbhi_score needs --task cycles")
        if self.wait_for_gpus is not None and (self.ray_address == "local" or not self.gpus):
            raise UserError("--wait-for-gpus needs a cluster: give --address and --gpus N with it")
        if is_uri(self.storage):
            ObjectPath.parse("--storage", self.storage)

    @property
    def budget(self) -> int | None:
        """Return the total number of trials; None if only a time budget limits them."""
        if self.trials is None and self.time_budget is None:
            return DEFAULT_TRIALS
        return self.trials

    @property
    def ray_address(self) -> str:
        """Return the address of the Ray cluster: `local`, `auto` or HOST:PORT."""
        return self.address or ("auto" if in_ray_job() else "local")

    @property
    def split_spec(self) -> SplitSpec:
        """Return what makes the split."""
        return SplitSpec.from_dict(vars(self))

    @property
    def search_name(self) -> str:
        """Return `name`, or a timestamp."""
        return self.name or time.strftime("%Y%m%d-%H%M%S")

    def recorded(self) -> dict[str, Any]:
        """Return the options that MLflow records as parameters of the search."""
        names = ("metric", "epochs", "seed", "scheduler", "sampler", "replicates")
        return self.split_spec.as_dict() | {name: getattr(self, name) for name in names}


def _check_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value in known or (name == "task" and value.endswith(TASK_FILES)):
        return
    file = ", or a .yaml file that groups diagnoses" if name == "task" else ""
    hint = nearest(value, known)
    also = "" if hint.startswith("known") else f" Known: {', '.join(known)}"
    raise UserError(f"unknown --{name} '{value}': {hint}{also}{file}")
