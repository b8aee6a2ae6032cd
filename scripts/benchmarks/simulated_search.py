"""Run real searches with simulated trials: Ray, the study and MLflow, without any training."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.simulated_trials import START_TOGETHER, Instant
from benchmarks.workspace import Workspace
from resp_tune.cluster.local_ray import local_ray
from resp_tune.cluster.resources import TrialResources
from resp_tune.common.choices import State
from resp_tune.errors import RunError
from resp_tune.execution.trial_context import TrialArtifacts, TrialContext
from resp_tune.execution.tuner import run_trials
from resp_tune.harness.listeners import TrackingListener
from resp_tune.space.search_space import load_space
from resp_tune.study.samplers import make_sampler
from resp_tune.study.study import TrialRecord, open_study
from resp_tune.study.trial_queue import SamplerSource, TrialQueue, TrialSettings
from resp_tune.tracking.search_run import SearchRuns
from resp_tune.tracking.tags import SearchRef

METRIC = "macro_f1"

Step = tuple[float, float]  # start and end, seconds of the monotonic clock


@dataclass(frozen=True)
class SimulatedSearch:
    """The times of a search, in seconds; points in time are of the monotonic clock.

    `seconds`: from Ray's start to MLflow's last write; `since_first_epoch`: from the start of the
    first epoch, so without the start of the workers. `trial_starts`, `trial_ends`: ascending.
    `loop_cpu`: CPU time of the driver's thread at each trial's end. `steps_by_worker`: the steps of
    each worker process, ascending.
    """

    ray_seconds: float
    seconds: float
    since_first_epoch: float
    trial_starts: list[float]
    trial_ends: list[float]
    loop_cpu: list[float]
    steps_by_worker: list[list[Step]]


class TrialClock:
    """A listener that records when trials start and end."""

    def __init__(self) -> None:
        self.starts: list[float] = []
        self.ends: list[float] = []
        self.cpu: list[float] = []
        self.states: list[State | None] = []

    def started(self, trial: TrialRecord) -> None:
        """Record a trial's start."""
        self.starts.append(time.monotonic())

    def advanced(self, trial: TrialRecord, epochs: Sequence[Mapping[str, float]]) -> None:
        """Ignore epochs: the workers record them."""

    def ended(self, trial: TrialRecord) -> None:
        """Record a trial's end and final state."""
        self.ends.append(time.monotonic())
        self.cpu.append(time.thread_time())
        self.states.append(trial.state)


def run_simulated_search(
    workspace: Workspace,
    trainable: type[Instant],
    *,
    trials: int,
    epochs: int,
    slots: TrialResources,
    start_together: bool = False,
) -> SimulatedSearch:
    """Run a search of `trials` simulated trials with its own study and its own MLflow on sqlite.

    `start_together`: no trial starts before every slot has its process. Raise `RunError` unless all
    trials finish.
    """
    folder = Path(tempfile.mkdtemp(prefix="simulated-", dir=workspace.folder))
    clock = TrialClock()
    if start_together:
        (folder / "trials").mkdir()
        (folder / "trials" / START_TOGETHER).write_text(str(slots.concurrency))
    space = load_space("search_spaces/notebook.yaml")
    study = open_study(folder / "study.db", folder.name, METRIC, make_sampler("tpe", 0))
    runs = SearchRuns(
        f"sqlite:///{folder / 'mlflow.db'}",
        folder,
        SearchRef(folder.name, METRIC, "max"),
        params={},
    )
    source = SamplerSource(study, space, TrialSettings(METRIC, epochs, seed=0), budget=trials)
    queue = TrialQueue(source, [TrackingListener(runs, METRIC, {}), clock])
    before = time.monotonic()
    with local_ray(workspace.machine, round(slots.concurrency * slots.gpus)):
        ready = time.monotonic()
        context = _context(folder / "trials", slots.threads)
        run_trials(queue, context, slots, trainable=trainable)
        runs.close("FINISHED", seconds=600)
        done = time.monotonic()
    if clock.states != ["finished"] * trials:
        raise RunError(
            f"only {clock.states.count('finished')} of {trials} simulated trials finished"
        )
    steps_by_worker = _read_steps(folder / "trials")
    return SimulatedSearch(
        ray_seconds=ready - before,
        seconds=done - ready,
        since_first_epoch=done - min(steps[0][0] for steps in steps_by_worker),
        trial_starts=clock.starts,
        trial_ends=clock.ends,
        loop_cpu=clock.cpu,
        steps_by_worker=steps_by_worker,
    )


def _context(trials_folder: Path, threads: int) -> TrialContext:
    """Return a context with little but the folder: simulated trials read nothing else."""
    return TrialContext(
        folds=(),
        caches=None,  # type: ignore[arg-type]  # would import torch in the workers
        artifacts=TrialArtifacts(trials_folder),
        metric=METRIC,
        rungs=(),
        threads=threads,
        gpus=0.0,
    )


def _read_steps(folder: Path) -> list[list[Step]]:
    texts = [path.read_text() for path in sorted(folder.glob("steps-*"))]
    return [[_parse_step(line) for line in text.splitlines()] for text in texts if text]


def _parse_step(line: str) -> Step:
    start, end = line.split()
    return float(start), float(end)
