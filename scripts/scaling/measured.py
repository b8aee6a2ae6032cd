"""What was measured, and the costs that follow from it for any number of slots."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.workplace import Workplace

from scaling import drivers, stores, studies, trackers
from scaling.drivers import Loop
from scaling.events import Costs, Tracker
from scaling.sizes import Sizes
from scaling.stores import StoreCost
from scaling.studies import StudyCost


@dataclass(frozen=True)
class Measured:
    """The parts, each really run. `left_out` says what was not; empty where all was."""

    round_trip: float
    loops: list[Loop]
    study: list[StudyCost]
    trackers: dict[str, Tracker]
    left_out: str
    stores: list[StoreCost]

    def costs(self, slots: int, *, computing_only: bool = False) -> Costs:
        """Of a search with `slots` slots; beyond those that were run they go on in a line.

        `computing_only`: of the driver's loop only what its own thread computed, which is what it
        would take with a core to itself.
        """
        report = line(self._points("report", computing_only))
        trial = line(self._points("trial", computing_only))
        # The study grew in those runs too: what they show is the cost half-way.
        calm = statistics.mean(loop.short.trials for loop in self.loops) / 2
        store = self.stores[0]
        return Costs(
            report=report(slots),
            epoch=statistics.mean(
                cost.epoch_cpu if computing_only else cost.epoch for cost in self.study
            ),
            report_delay=max(0.0, self.round_trip - report(1)),
            trial=lambda n: max(0.0, trial(slots) + self._study(n) - self._study(calm)),
            write=1 / store.best,
            write_delay=max(0.0, store.alone - 1 / store.best),
            trackers=self.trackers,
        )

    def _points(self, what: str, computing_only: bool) -> list[tuple[int, float]]:
        points = []
        for loop in self.loops:
            least, seen = getattr(loop, f"{what}_cpu"), getattr(loop, what)
            # Telling the two apart on a busy machine may leave one less than it computed.
            points.append((loop.slots, least if computing_only else max(least, seen)))
        return points

    def _study(self, trials: float) -> float:
        """Seconds of the study's part of a trial, straight between the sizes that were measured."""
        points = [(cost.trials, cost.start + cost.end) for cost in self.study]
        if trials <= points[0][0]:
            return points[0][1]
        for (a, low), (b, high) in itertools.pairwise(points):
            if trials <= b:
                return low + (high - low) * (trials - a) / (b - a)
        return points[-1][1]


def line(points: Sequence[tuple[int, float]]) -> Callable[[int], float]:
    """The straight line through the points, level where it would fall."""
    if len(points) > 1:
        slope, intercept = statistics.linear_regression(*zip(*points, strict=True))
        if slope > 0:
            return lambda slots: max(0.0, intercept + slope * slots)
    level = statistics.mean(value for _, value in points)
    return lambda slots: level


def measure(folder: Path, storage: Path, sizes: Sizes, postgres: str | None) -> Measured:
    """Run every part; `storage` is where checkpoints are written."""
    from benchmarks.sizes import QUICK

    place = Workplace(folder, QUICK)  # its own sizes are not used: no recordings are made
    costs, left_out = trackers.measure(folder, sizes, postgres)
    kept = stores.measure(storage, sizes)
    study = studies.measure(folder, sizes)
    trip = drivers.round_trip(place, sizes)
    return Measured(trip, drivers.measure(place, sizes), study, costs, left_out, kept)
