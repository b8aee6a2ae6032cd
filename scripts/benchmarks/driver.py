"""The real driver of a search with simulated trials: Ray, the study, MLflow, nothing learnt."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.simulated import TOGETHER, Instant
from benchmarks.workplace import Workplace
from resp_tune.cluster.local_ray import local_ray
from resp_tune.cluster.resources import TrialResources
from resp_tune.common.choices import State
from resp_tune.errors import RunError
from resp_tune.execution.trial_context import TrialArtifacts, TrialContext
from resp_tune.execution.tuner import run_trials
from resp_tune.harness.background import TrackingListener
from resp_tune.space.search_space import load_space
from resp_tune.study.samplers import make_sampler
from resp_tune.study.study import TrialRecord, open_study
from resp_tune.study.trial_queue import SamplerSource, TrialQueue, TrialSettings
from resp_tune.tracking.search_run import SearchRuns
from resp_tune.tracking.tags import SearchRef

METRIC = "macro_f1"

Step = tuple[float, float]  # start and end, seconds of the monotonic clock


@dataclass(frozen=True)
class Driven:
    """What a search took. Times are seconds of the monotonic clock.

    `seconds`: from Ray being ready to MLflow having everything; `working`: from the first epoch's
    start, so without that of the processes. `handed_out`, `ended`: of each trial, in that order.
    `loop_cpu`: what the loop's own thread had computed at each end. `workers`: the steps of each
    process, by start.
    """

    ray_seconds: float
    seconds: float
    working: float
    handed_out: list[float]
    ended: list[float]
    loop_cpu: list[float]
    workers: list[list[Step]]


class Clock:
    """A listener that notes when trials begin and end."""

    def __init__(self) -> None:
        self.handed_out: list[float] = []
        self.ended_at: list[float] = []
        self.cpu_at: list[float] = []
        self.states: list[State | None] = []

    def started(self, trial: TrialRecord) -> None:
        """A trial was handed out."""
        self.handed_out.append(time.monotonic())

    def advanced(self, trial: TrialRecord, epochs: Sequence[Mapping[str, float]]) -> None:
        """Epochs are in the steps' own files."""

    def ended(self, trial: TrialRecord) -> None:
        """A trial has reached its final state."""
        self.ended_at.append(time.monotonic())
        self.cpu_at.append(time.thread_time())
        self.states.append(trial.state)


def drive(
    place: Workplace,
    trainable: type[Instant],
    *,
    trials: int,
    epochs: int,
    slots: TrialResources,
    together: bool = False,
) -> Driven:
    """Run a search of `trials` simulated trials, with a study and an MLflow store of its own.

    `together`: no trial begins before every slot has its process.
    """
    folder = Path(tempfile.mkdtemp(prefix="driven-", dir=place.folder))
    machine, clock = place.machine, Clock()
    if together:
        (folder / "trials").mkdir()
        (folder / "trials" / TOGETHER).write_text(str(slots.concurrency))
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
    with local_ray(machine, round(slots.concurrency * slots.gpus)):
        ready = time.monotonic()
        context = _context(folder / "trials", slots.threads)
        run_trials(queue, context, slots, trainable=trainable)
        runs.close("FINISHED", seconds=600)
        done = time.monotonic()
    if clock.states != ["finished"] * trials:
        raise RunError(f"of {trials} simulated trials {clock.states.count('finished')} finished")
    workers = _steps(folder / "trials")
    return Driven(
        ray_seconds=ready - before,
        seconds=done - ready,
        working=done - min(steps[0][0] for steps in workers),
        handed_out=clock.handed_out,
        ended=clock.ended_at,
        loop_cpu=clock.cpu_at,
        workers=workers,
    )


def _context(trials_folder: Path, threads: int) -> TrialContext:
    """Only a folder: simulated trials read nothing else."""
    return TrialContext(
        folds=(),
        caches=None,  # type: ignore[arg-type]  # would bring torch into the workers
        artifacts=TrialArtifacts(trials_folder),
        metric=METRIC,
        rungs=(),
        threads=threads,
        gpus=0.0,
    )


def _steps(folder: Path) -> list[list[Step]]:
    """What the steps of each process wrote down."""
    texts = [path.read_text() for path in sorted(folder.glob("steps-*"))]
    return [[_step(line) for line in text.splitlines()] for text in texts if text]


def _step(line: str) -> Step:
    start, end = line.split()
    return float(start), float(end)
