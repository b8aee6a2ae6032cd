"""The simulated searches: usual trials on 1 to 512 GPUs, and the searches that were measured."""

from __future__ import annotations

from dataclasses import dataclass, replace

from resp_tune.execution.trainable import CHECKPOINT_SECONDS, REPORT_SECONDS
from resp_tune.study.schedulers import grace_period
from scaling.driver_loop import LoopCosts
from scaling.measurements import Measurements
from scaling.simulation import Outcome, Workload, saturation, simulate
from scaling.sizes import Sizes

GPUS = (1, 8, 64, 512)
REPORT_INTERVALS = (1.0, 5.0, 20.0)  # seconds
PRUNED, SPREAD = 0.5, 0.3


@dataclass(frozen=True)
class Scenario:
    """Trials of `epochs` epochs, each of `epoch_seconds`."""

    epoch_seconds: float
    epochs: int
    pruned: float = PRUNED

    def __str__(self) -> str:
        return f"{self.epochs} epochs of {self.epoch_seconds:g} s"

    def load(self, slots: int, sizes: Sizes, report_seconds: float = REPORT_SECONDS) -> Workload:
        """Return the workload of a search on `slots` GPUs with one trial per GPU."""
        return Workload(
            slots=slots,
            trials=max(sizes.simulated_trials, sizes.simulated_a_slot * slots),
            epochs=self.epochs,
            epoch_seconds=self.epoch_seconds,
            rung=grace_period(self.epochs) if self.epochs > 1 else 0,
            pruned=self.pruned if self.epochs > 1 else 0.0,
            spread=SPREAD,
            report_seconds=report_seconds,
            checkpoint_seconds=CHECKPOINT_SECONDS,
        )


# The first is the time of an H100 for 920 recordings (results/BENCHMARKS.md).
SCENARIOS = (Scenario(0.085, 20), Scenario(1.0, 20), Scenario(10.0, 50), Scenario(60.0, 100))


@dataclass(frozen=True)
class ScenarioResult:
    """A simulated scenario.

    `outcomes`: by number of GPUs. `saturation`: the fewest GPUs that saturate each part;
    `computing_only`: the same when the driver's loop has a core of its own. `rules`: share of busy
    slots on the largest number of GPUs, by seconds between two reports of a trial.
    """

    scenario: str
    outcomes: dict[int, Outcome]
    saturation: dict[str, int]
    computing_only: dict[str, int]
    rules: dict[float, float]


@dataclass(frozen=True)
class SimulationCheck:
    """Share of busy slots and reports per second, each of a real search and of its simulation."""

    slots: int
    busy: tuple[float, float]
    reports: tuple[float, float]


def simulate_scenario(
    measured: Measurements, scenario: Scenario, sizes: Sizes, seed: int
) -> ScenarioResult:
    """Simulate `scenario` on each number of GPUs."""

    def load_at(slots: int) -> Workload:
        return scenario.load(slots, sizes)

    most = max(GPUS)
    return ScenarioResult(
        scenario=str(scenario),
        outcomes={n: simulate(load_at(n), measured.costs(n), seed) for n in GPUS},
        saturation=saturation(load_at, measured.costs),
        computing_only=saturation(load_at, lambda n: measured.costs(n, computing_only=True)),
        rules={
            seconds: simulate(scenario.load(most, sizes, seconds), measured.costs(most), seed).busy
            for seconds in REPORT_INTERVALS
        },
    )


def check_simulation(
    measured: Measurements, loop: LoopCosts, sizes: Sizes, seed: int
) -> SimulationCheck:
    """Simulate the search with epochs of 1 s from the costs of those with instant epochs."""
    load = Workload(
        slots=loop.slots,
        trials=sizes.paced_trials * loop.slots,
        epochs=sizes.paced_epochs,
        epoch_seconds=1.0,
    )
    costs = replace(measured.costs(loop.slots), write=0.0, write_delay=0.0)
    simulated = simulate(load, costs, seed)
    real = loop.paced
    return SimulationCheck(
        loop.slots,
        busy=(real.busy, simulated.busy),
        reports=(real.reports / real.seconds, simulated.reports_per_second),
    )
