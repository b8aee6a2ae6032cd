"""Measure the cost of Ray, Optuna and MLflow per trial and epoch, and its growth with the study."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from benchmarks.simulated_search import SimulatedSearch, run_simulated_search
from benchmarks.simulated_trials import Instant, Tenth
from benchmarks.workspace import Measurement, Workspace
from resp_tune.cluster.resources import TrialResources

OVERHEAD_ROWS = ("overhead_per_trial_s", "overhead_per_epoch_ms")
GROWTH_ROWS = ("growth_1000",)
CONCURRENCY = 2
SINGLE = TrialResources(concurrency=1, cpus=1.0, gpus=0.0, threads=1)


def measure_overheads(workspace: Workspace) -> Measurement:
    """Measure trials of one instant epoch, then the slope between few and many epochs per trial."""
    sizes = workspace.sizes
    instant = run_simulated_search(
        workspace, Instant, trials=sizes.instant_trials, epochs=1, slots=_pair(workspace)
    )
    counts = (1, 1 + sizes.reported_epochs)
    short, long = (
        run_simulated_search(
            workspace, Instant, trials=sizes.reporting_trials, epochs=n, slots=SINGLE
        )
        for n in counts
    )
    reports = sizes.reporting_trials * sizes.reported_epochs
    per_epoch = (long.since_first_epoch - short.since_first_epoch) / reports * 1000
    return Measurement(
        {
            "overhead_per_trial_s": instant.seconds / sizes.instant_trials,
            "overhead_per_epoch_ms": per_epoch,
        },
        {
            "overhead_per_trial_s": f"{sizes.instant_trials} trials of one instant epoch, "
            f"{CONCURRENCY} at once, actors reused: {instant.seconds:.1f} s to the last write in "
            f"MLflow, without Ray's start ({instant.ray_seconds:.1f} s)",
            "overhead_per_epoch_ms": f"{sizes.reporting_trials} trials, one at a time, of "
            f"{counts[0]} and of {counts[1]} instant epochs, each epoch a report: "
            f"{short.since_first_epoch:.1f} s, {long.since_first_epoch:.1f} s from the first "
            "epoch's start",
        },
        {
            "instant_seconds": instant.seconds,
            "ray_start_seconds": [search.ray_seconds for search in (instant, short, long)],
            "reporting_seconds": {
                str(counts[0]): short.since_first_epoch,
                str(counts[1]): long.since_first_epoch,
            },
        },
    )


def measure_growth(workspace: Workspace) -> Measurement:
    """Run one search of many trials; compare the time per trial late and early in it."""
    early, late = workspace.sizes.growth
    search = run_simulated_search(workspace, Tenth, trials=late, epochs=1, slots=_pair(workspace))
    # Centred on the early count, so that the start of the workers is left out.
    first = seconds_per_trial(search, early // 2, early + early // 2)
    last = seconds_per_trial(search, late - early, late)
    return Measurement(
        {"growth_1000": last / first},
        {
            "growth_1000": f"one search of {late} trials of one 0.1 s epoch, {CONCURRENCY} at "
            f"once: {first * 1000:.0f} ms per trial around the {early}th, {last * 1000:.0f} ms "
            f"over the last {early}"
        },
        {
            "growth_seconds": search.seconds,
            "growth_ms_by_hundred": _ms_by_hundred(search.trial_ends),
        },
    )


def seconds_per_trial(search: SimulatedSearch, first: int, last: int) -> float:
    """Return the mean seconds between trial ends, from end `first` to end `last` (from 1)."""
    return (search.trial_ends[last - 1] - search.trial_ends[first - 1]) / (last - first)


def _ms_by_hundred(ends: Sequence[float]) -> list[float]:
    return [round(1000 * (b - a) / 100, 2) for a, b in itertools.pairwise(ends[99::100])]


def _pair(workspace: Workspace) -> TrialResources:
    cpus = min(1.0, workspace.machine.cpus / CONCURRENCY)
    return TrialResources(concurrency=CONCURRENCY, cpus=cpus, gpus=0.0, threads=1)
