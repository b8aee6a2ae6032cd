"""The options of a search: one field per flag, with its default, bounds and help text."""

from __future__ import annotations

import dataclasses
import os
import re
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

from resp_tune.common.choices import (
    FOLD_ORDERS,
    FOLD_RULES,
    LARGEST_ENSEMBLE,
    LEVELS,
    METRICS,
    SAMPLERS,
    SCHEDULERS,
    TASK_FILES,
    TASKS,
    FoldOrder,
    at_level,
)
from resp_tune.config import setting
from resp_tune.data.split_spec import SplitSpec
from resp_tune.errors import UserError, choose_from
from resp_tune.storage.object_store import ObjectPath, is_uri

DEFAULT_TRIALS = 20

GROUPS = ("data and metric", "trials", "compute", "results")  # titles of --help
_data, _trials, _compute, _results = (partial(setting, group=title) for title in GROUPS)
_COUNT = {"low": 1, "high": 10**18, "metavar": "N"}
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

    data: str | None = _data(
        None,
        "folder or URI of the recordings (default: $RESP_TUNE_DATA, else a small synthetic set)",
        metavar="PATH",
    )
    task: str = _data(
        "diagnosis",
        f"{', '.join(TASKS)}, or a YAML file that groups diagnoses into other classes",
        metavar="NAME or FILE",
        choices=TASKS,
    )
    metric: str = _data("macro_f1", ", ".join(METRICS), choices=METRICS)
    level: str = _data(
        "recording",
        "what the metric is of: recording; session or patient: the mean log-probability over its "
        "recordings",
        choices=LEVELS,
    )
    space: str = _trials("search_spaces/default.yaml", "search space, a YAML file", metavar="FILE")
    trials: int | None = _trials(
        None,
        "total number of trials, including earlier runs of this name (default: "
        f"{DEFAULT_TRIALS}; unlimited with --time-budget)",
        **_COUNT,
    )
    epochs: int = _trials(20, "epochs per trial, the length of its OneCycle schedule", **_COUNT)
    time_budget: float | None = _trials(
        None,
        "time after which no trial starts and running trials are pruned; replicates still run",
        metavar="30m",
        duration=True,
    )
    stop: tuple[str, ...] = _trials(
        (),
        "end the search early, may be given several times: plateau:N: no better score in N trials; "
        "target:X: a trial scored X; regret: what is still to be gained is less than the noise of "
        "the folds",
        metavar="RULE",
    )
    trial_timeout: float | None = _trials(
        None,
        "time after which a trial fails, also if it hangs; the search continues",
        metavar="10m",
        duration=True,
    )
    scheduler: str = _trials("asha", ", ".join(SCHEDULERS), choices=SCHEDULERS)
    fold_order: str | None = _trials(
        None,
        "with --folds: sequence trains a trial's folds one after the other and may stop it between "
        "them; together trains an epoch of each in turn (default: sequence)",
        choices=FOLD_ORDERS,
    )
    fold_rule: str | None = _trials(
        None,
        "when a trial stops between folds: forgiving: its mean is worse than the incumbent's worst "
        "fold; wilcoxon: a signed-rank test over epochs and folds finds it worse than the "
        "incumbent; none: never (default: forgiving; none with --scheduler none)",
        choices=FOLD_RULES,
    )
    reshuffle: bool = _trials(
        False,
        "divide the patients into training and validation split anew for each trial; the winner is "
        "selected by --replicates, whose splits are common",
    )
    sampler: str = _trials("tpe", ", ".join(SAMPLERS), choices=SAMPLERS)
    replicates: int = _trials(
        1,
        "train the best four trials again with R new seeds each, and select the winner by mean "
        "minus standard error; 1: no replicates",
        **{**_COUNT, "high": 100, "metavar": "R"},
    )
    ensemble: int = _trials(
        1,
        "average the predictions of the N best trials, which together form the winner; 1: the best "
        "trial alone",
        **{**_COUNT, "high": LARGEST_ENSEMBLE},
    )
    seed: int = _trials(0, "seed of the sampler and of the trials", **{**_COUNT, "low": 0})
    gpus: int | None = _compute(
        None, "GPUs used at once, 0 for the CPU (default: all)", **{**_COUNT, "low": 0}
    )
    trials_per_gpu: int | None = _compute(
        1,
        "concurrent trials per GPU; auto: benchmark the GPUs before the search",
        **{**_COUNT, "metavar": "K", "auto": True},
    )
    concurrency: int | None = _compute(
        None, "concurrent trials (default: from the machine)", **_COUNT
    )
    cpus_per_trial: float | None = _compute(
        None, "CPU cores per trial, may be a fraction (default: from the machine)", metavar="X"
    )
    address: str | None = _compute(
        None,
        "address of a running Ray cluster, or auto for the one this node belongs to (default: "
        "local, a private Ray; auto inside a Ray job)",
        metavar="local, auto or HOST:PORT",
    )
    wait_for_gpus: float | None = _compute(
        None, "how long to wait until the cluster has --gpus GPUs", metavar="10m", duration=True
    )
    name: str | None = _results(None, "name of the search (default: a timestamp)")
    storage: str = _results(
        "results",
        "folder in which the folder NAME is made, or s3://BUCKET/PREFIX, gs://…, abfs://… (see "
        "docs/storage.md)",
        metavar="PATH or URI",
    )
    tracking_uri: str | None = _results(
        None,
        "MLflow tracking URI (default: $MLFLOW_TRACKING_URI, else sqlite:///STORAGE/mlflow.db)",
        metavar="URI",
    )
    dry_run: bool = _results(False, "check everything and print the plan; start and write nothing")

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in dataclasses.fields(SearchOptions):
            name, value = field.name, getattr(self, field.name)
            known, is_task = field.metadata.get("choices"), name == "task"
            is_file = is_task and value.endswith(TASK_FILES)
            if known and value not in (None, *known) and not is_file:
                file = " (or a .yaml file that groups diagnoses)" * is_task
                flag = name.replace("_", "-")
                raise UserError(f"unknown --{flag} '{value}': {choose_from(value, known)}{file}")
        if self.stop:
            self._check_stop()
        if self.name is not None:
            check_search_name(self.name)
        if self.metric == "icbhi_score" and self.task != "cycles":
            raise UserError("--metric icbhi_score needs --task cycles")
        if self.level != "recording" and self.task == "cycles":
            raise UserError(
                f"--level {self.level} needs a task whose label is of the patient, and that of a "
                "breathing cycle is not: leave it out, or choose another --task"
            )
        if self.reshuffle and self.replicates == 1:
            raise UserError(
                "--reshuffle scores each trial on other patients, so these scores cannot select a "
                "winner: give --replicates 2 or more with it"
            )
        if self.replicates > 1 and self.ensemble > 1:
            self._check_candidates()
        if self.reshuffle and self.protocol == "recording":
            raise UserError(
                "--reshuffle divides patients, and --protocol recording does not: leave one out"
            )
        if self.reshuffle and self.fold_rule == "wilcoxon":
            raise UserError(
                "--fold-rule wilcoxon pairs epochs of the same folds, and with --reshuffle each "
                "trial has its own: give --fold-rule forgiving"
            )
        if self.wait_for_gpus is not None and (self.ray_address == "local" or not self.gpus):
            raise UserError("--wait-for-gpus needs a cluster: give --address and --gpus N with it")
        if is_uri(self.storage):
            store = ObjectPath.parse("--storage", self.storage)
            if self.outer_folds > 1:
                raise UserError(
                    f"--outer-folds {self.outer_folds} keeps a search in the folder of another, "
                    f"and '{store}' cannot hold that: give a folder to --storage"
                )

    def _check_candidates(self) -> None:
        from resp_tune.study.replicates import MAX_CANDIDATES

        if self.ensemble > MAX_CANDIDATES:
            raise UserError(
                f"--ensemble {self.ensemble} needs more trials than the {MAX_CANDIDATES} that "
                f"--replicates {self.replicates} trains again: give --ensemble {MAX_CANDIDATES} or "
                "less, or leave --replicates out"
            )

    def _check_stop(self) -> None:
        from resp_tune.study.stop_rules import Regret, parse_stop_rule

        rules = [parse_stop_rule(text) for text in self.stop]
        if Regret() in rules and not self.in_sequence:
            raise UserError(
                "--stop regret compares with the noise between folds: give --folds 2 or more, in "
                "sequence"
            )

    @property
    def budget(self) -> int | None:
        """Return the total number of trials; None if only a time budget limits them."""
        unlimited = self.trials is None and self.time_budget is None
        return DEFAULT_TRIALS if unlimited else self.trials

    @property
    def objective(self) -> str:
        """Return the key of the metric that is optimised: the metric at its level."""
        return at_level(self.metric, self.level)

    @property
    def order(self) -> FoldOrder:
        """Return the order in which a trial's folds are trained."""
        return "together" if self.fold_order == "together" else "sequence"

    @property
    def in_sequence(self) -> bool:
        """Return whether a trial has several folds, which are trained one after the other."""
        return self.folds > 1 and self.order == "sequence"

    @property
    def folds_in_sequence(self) -> int:
        """Return the number of folds that a trial is trained on in sequence: 1 if together."""
        return self.folds if self.in_sequence else 1

    @property
    def rule_between_folds(self) -> str:
        """Return the name of the rule that stops trials between folds."""
        return self.fold_rule or ("none" if self.scheduler == "none" else "forgiving")

    @property
    def ray_address(self) -> str:
        """Return the address of the Ray cluster: `local`, `auto` or HOST:PORT."""
        if self.address is not None:
            return self.address
        return "auto" if in_ray_job() else "local"

    @property
    def split_spec(self) -> SplitSpec:
        """Return what makes the split."""
        return SplitSpec.from_dict(vars(self))

    @property
    def place(self) -> str:
        """Return which search of a nested one these options are of."""
        return "last search" if self.test_fold is None else f"outer fold {self.test_fold}"

    def of_outer_fold(self, number: int) -> SearchOptions:
        """Return the options of the search of an outer fold, whose seed follows from its number."""
        from resp_tune.training.seeds import mix_seed

        seed = mix_seed(self.seed, number) % 2**32
        return dataclasses.replace(self, test_fold=number, seed=seed)

    @property
    def search_name(self) -> str:
        """Return `name`, or a timestamp."""
        return self.name or time.strftime("%Y%m%d-%H%M%S")

    def recorded(self) -> dict[str, Any]:
        """Return the options that MLflow records as parameters of the search."""
        names = (
            "metric", "level", "epochs", "seed", "scheduler", "sampler", "replicates", "ensemble",
        )  # fmt: skip
        more: dict[str, Any] = {"fold_order": self.order} if self.folds > 1 else {}
        if self.reshuffle:
            more["reshuffle"] = True
        if self.stop:
            more["stop"] = " ".join(self.stop)
        return self.split_spec.as_dict() | {name: getattr(self, name) for name in names} | more
