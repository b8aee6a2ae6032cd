"""The measured costs, and their extrapolation to any number of slots."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.workspace import Workspace

from scaling import checkpoint_writes, driver_loop, study_costs, tracker_costs
from scaling.checkpoint_writes import WriteCosts
from scaling.driver_loop import LoopCosts
from scaling.simulation import Costs, TrackerCosts
from scaling.sizes import Sizes
from scaling.study_costs import StudyCosts


@dataclass(frozen=True)
class Measurements:
    """The measured parts. `left_out` names what could not be measured; it is empty otherwise."""

    round_trip: float
    loops: list[LoopCosts]
    study: list[StudyCosts]
    trackers: dict[str, TrackerCosts]
    left_out: str
    stores: list[WriteCosts]

    def costs(self, slots: int, *, computing_only: bool = False) -> Costs:
        """Return the costs of a search with `slots` slots, by linear regression on the slots.

        `computing_only` counts only the CPU time of the driver's loop: its cost with a core of its
        own.
        """
        report = fit_line(self._points("report", computing_only))
        trial = fit_line(self._points("trial", computing_only))
        # The study grew during those searches too: their mean is the cost at half of its trials.
        mean_trials = statistics.mean(loop.short.trials for loop in self.loops) / 2
        baseline = self.stores[0]
        return Costs(
            report=report(slots),
            epoch=statistics.mean(
                cost.epoch_cpu if computing_only else cost.epoch for cost in self.study
            ),
            report_delay=max(0.0, self.round_trip - report(1)),
            trial=lambda n: max(0.0, trial(slots) + self._study(n) - self._study(mean_trials)),
            write=1 / baseline.best,
            write_delay=max(0.0, baseline.alone - 1 / baseline.best),
            trackers=self.trackers,
        )

    def _points(self, name: str, computing_only: bool) -> list[tuple[int, float]]:
        points = []
        for loop in self.loops:
            cpu, wall = getattr(loop, f"{name}_cpu"), getattr(loop, name)
            # On a busy machine, separating reports from trials may leave less than the CPU time.
            points.append((loop.slots, cpu if computing_only else max(cpu, wall)))
        return points

    def _study(self, trials: float) -> float:
        """Return the study's seconds per trial, interpolated between the measured sizes."""
        points = [(cost.trials, cost.start + cost.end) for cost in self.study]
        if trials <= points[0][0]:
            return points[0][1]
        for (a, low), (b, high) in itertools.pairwise(points):
            if trials <= b:
                return low + (high - low) * (trials - a) / (b - a)
        return points[-1][1]


def fit_line(points: Sequence[tuple[int, float]]) -> Callable[[int], float]:
    """Return the regression line of the points, or their mean if it would fall."""
    if len(points) > 1:
        slope, intercept = statistics.linear_regression(*zip(*points, strict=True))
        if slope > 0:
            return lambda slots: max(0.0, intercept + slope * slots)
    level = statistics.mean(value for _, value in points)
    return lambda slots: level


def measure(folder: Path, storage: Path, sizes: Sizes, postgres: str | None) -> Measurements:
    """Measure every part; checkpoints are written to `storage`."""
    from benchmarks.sizes import QUICK

    workspace = Workspace(folder, QUICK)  # the benchmark's sizes are not used: no recordings
    trackers, left_out = tracker_costs.measure(folder, sizes, postgres)
    writes = checkpoint_writes.measure(storage, sizes)
    study = study_costs.measure(folder, sizes)
    round_trip = driver_loop.measure_round_trip(workspace, sizes)
    loops = driver_loop.measure(workspace, sizes)
    return Measurements(round_trip, loops, study, trackers, left_out, writes)
