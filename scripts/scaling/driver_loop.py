"""Measure the driver's loop: a real Ray and real slots with trials that train nothing."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import psutil
from benchmarks.overheads import SINGLE
from benchmarks.simulated_search import SimulatedSearch, run_simulated_search
from benchmarks.simulated_trials import Instant, Second
from benchmarks.slots import SLOT_MEMORY, busy_share
from benchmarks.workspace import Workspace

from resp_tune.cluster.resources import TrialResources
from scaling.sizes import Sizes

log = logging.getLogger("resp_tune")

MEMORY_SHARE = 0.8  # of the free memory; the rest is for Ray's own processes


@dataclass(frozen=True)
class SearchWindow:
    """Counts from the moment when every slot has its process to the start of the last trial."""

    reports: int
    trials: int
    seconds: float
    cpu_seconds: float  # of the loop's own thread
    busy: float
    late: float  # seconds from the end of the last trial to MLflow's last write


@dataclass(frozen=True)
class LoopCosts:
    """Costs of the driver's loop with `slots` slots.

    `report`, `trial`: seconds of the loop, from two searches that never leave it idle.
    `report_cpu`, `trial_cpu`: CPU seconds of its own thread in these searches. `paced`: a search
    with epochs of 1 s, with which the simulation is compared.
    """

    slots: int
    report: float
    trial: float
    report_cpu: float
    trial_cpu: float
    short: SearchWindow
    long: SearchWindow
    paced: SearchWindow


def measure(workspace: Workspace, sizes: Sizes) -> list[LoopCosts]:
    """Measure the loop with each number of slots that fits into memory."""
    most = int(psutil.virtual_memory().available * MEMORY_SHARE / SLOT_MEMORY)
    counts = sorted({min(count, most) for count in sizes.slots})
    return [_measure_loop(workspace, sizes, count) for count in counts]


def measure_round_trip(workspace: Workspace, sizes: Sizes) -> float:
    """Return the seconds between two reports of a single slot, the way to the worker included."""
    trials = sizes.long_trials[0]
    short, long = (
        run_simulated_search(workspace, Instant, trials=trials, epochs=epochs, slots=SINGLE)
        for epochs in (1, 1 + sizes.long_epochs)
    )
    return (long.since_first_epoch - short.since_first_epoch) / (trials * sizes.long_epochs)


def _measure_loop(workspace: Workspace, sizes: Sizes, count: int) -> LoopCosts:
    cpus = int(1000 * workspace.machine.cpus / count) / 1000
    slots = TrialResources(concurrency=count, cpus=min(1.0, cpus), gpus=1.0, threads=1)

    def run(kind: str, trainable: type[Instant], trials: int, epochs: int) -> SearchWindow:
        log.info(f"{count} slots: {trials} trials of {epochs} {kind} epochs")
        search = run_simulated_search(
            workspace, trainable, trials=trials, epochs=epochs, slots=slots, start_together=True
        )
        return _window(search, count)

    (short_base, short_per_slot), (long_base, long_per_slot) = sizes.short_trials, sizes.long_trials
    short = run("instant", Instant, short_base + short_per_slot * count, 1)
    long = run("instant", Instant, long_base + long_per_slot * count, sizes.long_epochs)
    paced = run("1 s", Second, sizes.paced_trials * count, sizes.paced_epochs)
    report, trial = solve_costs(short, long, short.seconds, long.seconds)
    report_cpu, trial_cpu = solve_costs(short, long, short.cpu_seconds, long.cpu_seconds)
    return LoopCosts(count, report, trial, report_cpu, trial_cpu, short, long, paced)


def _window(search: SimulatedSearch, slots: int) -> SearchWindow:
    steps = [step for worker in search.steps_by_worker for step in worker]
    first_steps = sorted(worker[0][0] for worker in search.steps_by_worker)
    start, end = first_steps[slots - 1], search.trial_starts[-1]
    ended = [n for n, when in enumerate(search.trial_ends) if start < when <= end]
    finish = first_steps[0] + search.since_first_epoch
    return SearchWindow(
        reports=sum(start < done <= end for _, done in steps),
        trials=len(ended),
        seconds=end - start,
        cpu_seconds=search.loop_cpu[ended[-1]] - search.loop_cpu[max(0, ended[0] - 1)],
        busy=busy_share(steps, slots, start, end),
        late=finish - search.trial_ends[-1],
    )


def solve_costs(
    short: SearchWindow, long: SearchWindow, short_seconds: float, long_seconds: float
) -> tuple[float, float]:
    """Return the seconds per report and per trial, from two searches with both counts known.

    Solves the two linear equations; a solution below 0, from noise, is replaced by 0.
    """
    determinant = short.reports * long.trials - long.reports * short.trials
    report = (short_seconds * long.trials - long_seconds * short.trials) / determinant
    trial = (short.reports * long_seconds - long.reports * short_seconds) / determinant
    if trial < 0:
        return long_seconds / long.reports, 0.0
    if report < 0:
        return 0.0, short_seconds / short.trials
    return report, trial
