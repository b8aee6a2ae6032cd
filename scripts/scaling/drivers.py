"""The driver's loop: a real Ray and real slots, in which nothing is learnt."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import psutil
from benchmarks.driver import Driven, drive
from benchmarks.overheads import SINGLE
from benchmarks.simulated import Instant, Second
from benchmarks.slots import SLOT_MEMORY, busy_share
from benchmarks.workplace import Workplace

from resp_tune.cluster.resources import TrialResources
from scaling.sizes import Sizes

log = logging.getLogger("resp_tune")

USABLE = 0.8  # of the free memory: Ray's own processes live there too


@dataclass(frozen=True)
class Seen:
    """A run from when every slot had its process until the last trial was handed out."""

    reports: int
    trials: int
    seconds: float
    cpu_seconds: float  # of the loop's own thread
    busy: float
    late: float  # seconds from the last end to MLflow having everything


@dataclass(frozen=True)
class Loop:
    """What the driver's loop does with `slots` slots.

    `report`, `trial`: seconds of the loop, from two runs that never leave it idle. `*_cpu`: what
    its own thread computed in them. `paced`: epochs of 1 s, the run that the simulation is held to.
    """

    slots: int
    report: float
    trial: float
    report_cpu: float
    trial_cpu: float
    short: Seen
    long: Seen
    paced: Seen


def measure(place: Workplace, sizes: Sizes) -> list[Loop]:
    """Every number of slots that there is memory for."""
    room = int(psutil.virtual_memory().available * USABLE / SLOT_MEMORY)
    counts = sorted({min(count, room) for count in sizes.slots})
    return [_loop(place, sizes, count) for count in counts]


def round_trip(place: Workplace, sizes: Sizes) -> float:
    """Seconds from one report to the next of a single slot: the loop, and the way to the worker."""
    trials = sizes.long_trials[0]
    short = drive(place, Instant, trials=trials, epochs=1, slots=SINGLE)
    long = drive(place, Instant, trials=trials, epochs=1 + sizes.long_epochs, slots=SINGLE)
    return (long.working - short.working) / (trials * sizes.long_epochs)


def _loop(place: Workplace, sizes: Sizes, count: int) -> Loop:
    cpus = int(1000 * place.machine.cpus / count) / 1000
    slots = TrialResources(concurrency=count, cpus=min(1.0, cpus), gpus=1.0, threads=1)

    def run(what: str, trainable: type[Instant], trials: int, epochs: int) -> Seen:
        log.info(f"{count} slots: {trials} trials of {epochs} {what} epochs")
        driven = drive(place, trainable, trials=trials, epochs=epochs, slots=slots, together=True)
        return _seen(driven, count)

    (short, more), (long, longer) = sizes.short_trials, sizes.long_trials
    many = run("instant", Instant, short + more * count, 1)
    few = run("instant", Instant, long + longer * count, sizes.long_epochs)
    paced = run("1 s", Second, sizes.paced_trials * count, sizes.paced_epochs)
    report, trial = apart(many, few, many.seconds, few.seconds)
    report_cpu, trial_cpu = apart(many, few, many.cpu_seconds, few.cpu_seconds)
    return Loop(count, report, trial, report_cpu, trial_cpu, many, few, paced)


def _seen(driven: Driven, slots: int) -> Seen:
    steps = [step for worker in driven.workers for step in worker]
    first = sorted(worker[0][0] for worker in driven.workers)
    start, end = first[slots - 1], driven.handed_out[-1]
    ends = [n for n, when in enumerate(driven.ended) if start < when <= end]
    finish = first[0] + driven.working
    return Seen(
        reports=sum(start < done <= end for _, done in steps),
        trials=len(ends),
        seconds=end - start,
        cpu_seconds=driven.loop_cpu[ends[-1]] - driven.loop_cpu[max(0, ends[0] - 1)],
        busy=busy_share(steps, slots, start, end),
        late=finish - driven.ended[-1],
    )


def apart(many: Seen, few: Seen, a: float, b: float) -> tuple[float, float]:
    """Seconds a report and seconds a trial, where `many` took `a` and `few` took `b` seconds."""
    determinant = many.reports * few.trials - few.reports * many.trials
    report = (a * few.trials - b * many.trials) / determinant
    trial = (many.reports * b - few.reports * a) / determinant
    if trial < 0:
        return b / few.reports, 0.0
    if report < 0:
        return 0.0, a / many.trials
    return report, trial
