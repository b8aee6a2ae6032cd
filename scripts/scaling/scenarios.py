"""What is simulated: searches of usual lengths on 1 to 512 GPUs, and the runs that exist."""

from __future__ import annotations

from dataclasses import dataclass, replace

from resp_tune.execution.schedulers import grace_period
from resp_tune.execution.trainable import CHECKPOINT_SECONDS, REPORT_SECONDS
from scaling.drivers import Loop
from scaling.events import Outcome, Workload, saturation, simulate
from scaling.measured import Measured
from scaling.sizes import Sizes

GPUS = (1, 8, 64, 512)
RULES = (1.0, 5.0, 20.0)  # seconds between reports
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
        """As a search on `slots` GPUs, one trial a GPU."""
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


# The first is what an H100 took for 920 recordings (results/BENCHMARKS.md).
SCENARIOS = (Scenario(0.085, 20), Scenario(1.0, 20), Scenario(10.0, 50), Scenario(60.0, 100))


@dataclass(frozen=True)
class Scaled:
    """A scenario on each number of GPUs. `saturation`: the GPUs at which a part has no time left.

    `computing_only`: the same of the driver's loop, where it has a core to itself. `rules`: share
    of slots busy on the most GPUs, by seconds between two reports of a trial.
    """

    scenario: str
    outcomes: dict[int, Outcome]
    saturation: dict[str, int]
    computing_only: dict[str, int]
    rules: dict[float, float]


@dataclass(frozen=True)
class Checked:
    """A real run beside its simulation: share of slots busy, and reports a second."""

    slots: int
    busy: tuple[float, float]
    reports: tuple[float, float]


def scale(measured: Measured, scenario: Scenario, sizes: Sizes, seed: int) -> Scaled:
    """Simulate `scenario`."""

    def at(slots: int) -> Workload:
        return scenario.load(slots, sizes)

    most = max(GPUS)
    return Scaled(
        scenario=str(scenario),
        outcomes={n: simulate(at(n), measured.costs(n), seed) for n in GPUS},
        saturation=saturation(at, measured.costs),
        computing_only=saturation(at, lambda n: measured.costs(n, computing_only=True)),
        rules={
            rule: simulate(scenario.load(most, sizes, rule), measured.costs(most), seed).busy
            for rule in RULES
        },
    )


def check(measured: Measured, loop: Loop, sizes: Sizes, seed: int) -> Checked:
    """The run of 1 s epochs with these slots, simulated from the runs of instant ones."""
    load = Workload(
        slots=loop.slots,
        trials=sizes.paced_trials * loop.slots,
        epochs=sizes.paced_epochs,
        epoch_seconds=1.0,
    )
    costs = replace(measured.costs(loop.slots), write=0.0, write_delay=0.0)
    found = simulate(load, costs, seed)
    seen = loop.paced
    return Checked(
        loop.slots, (seen.busy, found.busy), (seen.reports / seen.seconds, found.reports_per_second)
    )
