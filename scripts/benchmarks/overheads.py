"""What Ray, Optuna and MLflow cost a trial and an epoch, and whether that grows with the study."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from benchmarks.driver import Driven, drive
from benchmarks.simulated import Instant, Tenth
from benchmarks.workplace import Findings, Workplace
from resp_tune.cluster.resources import TrialResources

OVERHEAD_ROWS = ("overhead_per_trial_s", "overhead_per_epoch_ms")
GROWTH_ROWS = ("growth_1000",)
AT_ONCE = 2
SINGLE = TrialResources(concurrency=1, cpus=1.0, gpus=0.0, threads=1)


def overheads(place: Workplace) -> Findings:
    """Trials of one instant epoch, then the slope between few and many epochs a trial."""
    sizes = place.sizes
    many = drive(place, Instant, trials=sizes.instant_trials, epochs=1, slots=_pair(place))
    a_trial = many.seconds / sizes.instant_trials
    counts = (1, 1 + sizes.reported_epochs)
    short, long = (
        drive(place, Instant, trials=sizes.reporting_trials, epochs=n, slots=SINGLE) for n in counts
    )
    reports = sizes.reporting_trials * sizes.reported_epochs
    an_epoch = (long.working - short.working) / reports * 1000
    return Findings(
        {"overhead_per_trial_s": a_trial, "overhead_per_epoch_ms": an_epoch},
        {
            "overhead_per_trial_s": f"{sizes.instant_trials} trials of one instant epoch, "
            f"{AT_ONCE} at once, actors reused: {many.seconds:.1f} s to the last write in MLflow; "
            f"Ray's start ({many.ray_seconds:.1f} s) is not in it",
            "overhead_per_epoch_ms": f"{sizes.reporting_trials} trials, one at once, of "
            f"{counts[0]} and of {counts[1]} instant epochs, each a report: "
            f"{short.working:.1f} s, {long.working:.1f} s from the first epoch on",
        },
        {
            "instant_seconds": many.seconds,
            "ray_start_seconds": [d.ray_seconds for d in (many, short, long)],
            "reporting_seconds": {str(counts[0]): short.working, str(counts[1]): long.working},
        },
    )


def growth(place: Workplace) -> Findings:
    """One search of many trials: what a trial takes late in it over what it took early."""
    early, late = place.sizes.growth
    driven = drive(place, Tenth, trials=late, epochs=1, slots=_pair(place))
    # Around the early mark, so that the start of the workers is not in it.
    first = spacing(driven, early // 2, early + early // 2)
    last = spacing(driven, late - early, late)
    return Findings(
        {"growth_1000": last / first},
        {
            "growth_1000": f"one search of {late} trials of one 0.1 s epoch, {AT_ONCE} at once: "
            f"{first * 1000:.0f} ms a trial around the {early}th, {last * 1000:.0f} ms over the "
            f"last {early}"
        },
        {"growth_seconds": driven.seconds, "growth_ms_by_hundred": _by_hundred(driven.ended)},
    )


def spacing(driven: Driven, first: int, last: int) -> float:
    """Seconds a trial between the ends of trials `first` and `last`, counted from 1."""
    return (driven.ended[last - 1] - driven.ended[first - 1]) / (last - first)


def _by_hundred(ended: Sequence[float]) -> list[float]:
    ends = ended[99::100]
    return [round(1000 * (b - a) / 100, 2) for a, b in itertools.pairwise(ends)]


def _pair(place: Workplace) -> TrialResources:
    share = min(1.0, place.machine.cpus / AT_ONCE)
    return TrialResources(concurrency=AT_ONCE, cpus=share, gpus=0.0, threads=1)
