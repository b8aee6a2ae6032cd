"""Searches in the process of the tests, whose trials report figures at once and train nothing."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import optuna
from rich.console import Console

from resp_tune.common.trial_key import TrialKey
from resp_tune.features.cache import FeatureCaches
from resp_tune.harness.background import BackgroundSetup
from resp_tune.harness.options import SearchOptions
from resp_tune.harness.remote_sync import StorageSync
from resp_tune.harness.run import run_search
from resp_tune.harness.spec import Compute, SearchSpec
from resp_tune.harness.stages import run_stages
from resp_tune.harness.validate import validate
from resp_tune.nested.nested_search import NestedSearch
from resp_tune.search import read_options
from resp_tune.study.samplers import make_sampler
from resp_tune.study.study import STUDY_ID, TrialRecord, open_study
from resp_tune.training.metrics import METRICS
from support.inline import InlineBackend
from support.mlflow_stores import with_mlflow_store
from support.old_release import OLD, make_recordings

FLAGS = (
    "--space", str(OLD / "space.yaml"), "--gpus", "0", "--scheduler", "none", "--epochs", "3",
    "--cpus-per-trial", "1", "--concurrency", "2", "--name", "small",
)  # fmt: skip


class InstantTrial:
    """Reports one epoch a step; `scores` holds the last epoch's score of a trial or replicate.

    Missing scores are 0.5. A trial of `ends` reports that error, or a loss that is not finite.
    """

    scores: Mapping[TrialKey, float] = {}
    ends: Mapping[TrialKey, str] = {}

    def setup(self, config: dict[str, Any], _context: Any) -> None:
        self.reset_config(config)

    def reset_config(self, config: dict[str, Any]) -> None:
        self.key, self.epochs = config["key"], config["config"].epochs
        self.epoch = 0

    def step(self) -> dict[str, Any]:
        self.epoch += 1
        score = self.scores.get(self.key, 0.5) * self.epoch / self.epochs
        end = self.ends.get(self.key)
        loss = math.nan if end == "nan" else 1.0 - score
        row = {"epoch": self.epoch, "train_loss": loss, "val_loss": loss, "lr": 1e-3}
        row |= {f"val_{name}": score for name in METRICS}
        return {
            "epoch": self.epoch,
            "epochs": [{**row, "seconds": 0.1}],
            "diverged": end == "nan",
            "error": end if end != "nan" else None,
            "fatal_error": None,
            "micro_batch": None,
            "message": None,
            "done": end is not None or self.epoch == self.epochs,
        }


class Events:
    """A listener that notes what it is told, as (event, label of the run)."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def started(self, trial: TrialRecord) -> None:
        self.seen.append(("started", trial.key.label))

    def advanced(self, trial: TrialRecord, epochs: Sequence[Mapping[str, float]]) -> None:
        self.seen.append(("advanced", trial.key.label))

    def ended(self, trial: TrialRecord) -> None:
        self.seen.append(("ended", trial.key.label))

    def of(self, event: str) -> list[str]:
        """Return the labels of the runs that `event` happened to, in order."""
        return [label for seen, label in self.seen if seen == event]


class InstantBackend(InlineBackend):
    """An inline back end of instant trials that has checked nothing; `log` notes its calls."""

    def __init__(
        self,
        compute: Compute,
        scores: Mapping[TrialKey, float] | None = None,
        ends: Mapping[TrialKey, str] | None = None,
    ) -> None:
        super().__init__(compute)
        values = {"scores": scores or {}, "ends": ends or {}}
        self.trainable = type("Trial", (InstantTrial,), values)
        self.log: list[str] = []

    def check(self, *_: Any) -> None:
        self.log.append("check")

    def run(self, *given: Any) -> None:
        self.log.append("run")
        super().run(*given)


def small_spec(folder: Path, *flags: str) -> SearchSpec:
    """Return the spec of a search of 24 recordings of 12 patients, as its command line makes it."""
    data = folder / "data"
    if not data.exists():
        make_recordings(data)
    given = [*FLAGS, "--data", str(data), "--storage", str(folder / "results"), *flags]
    return validate(read_options(given), given)


def small_study(spec: SearchSpec) -> optuna.Study:
    """Open the study of `spec`, which is made on the first call."""
    options: SearchOptions = spec.options
    spec.location.folder.mkdir(parents=True, exist_ok=True)
    sampler = make_sampler("random", 0)
    study = open_study(spec.location.study_file, spec.location.name, options.metric, sampler)
    study.set_user_attr(STUDY_ID, "1")
    return study


def run_small(spec: SearchSpec, backend: InstantBackend, *listeners: Events) -> optuna.Study:
    """Run the stages of `spec` over its study, without MLflow; `listeners`: at most one."""
    study = small_study(spec)
    setup = SimpleNamespace(
        caches=done(FeatureCaches(None, spec.data.sources, 10**9)),
        tracking=done(next(iter(listeners), Events())),
    )
    console = Console(file=io.StringIO())
    run_stages(spec, study, backend, StorageSync(), cast(BackgroundSetup, setup), console)
    return study


def search_here(spec: SearchSpec) -> Path:
    """Run a search with real trials in this process; return the path of its summary."""
    with_mlflow_store(spec.location.storage)
    console = Console(file=io.StringIO())
    if spec.outer:
        return NestedSearch(spec, console, InlineBackend).run()
    return run_search(spec, console, InlineBackend)


def done(value: Any) -> Future[Any]:
    """Return a future that has this result."""
    future: Future[Any] = Future()
    future.set_result(value)
    return future
