"""Format the figures as tables for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.tables import BEGIN, END
from rich.table import Table as RichTable

from scaling.measurements import Measurements
from scaling.scenarios import REPORT_INTERVALS, ScenarioResult, SimulationCheck
from scaling.simulation import DRIVER, MAX_SLOTS, STORAGE
from scaling.tracker_costs import SERVER, SQLITE


@dataclass(frozen=True)
class Table:
    """A title, the column heads and the cells."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]

    def rich(self) -> RichTable:
        """Return the table for a terminal."""
        table = RichTable(*self.heads, title=self.title, title_justify="left")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """Return the table in Markdown."""
        lines = [self.heads, ["---"] * len(self.heads), *self.rows]
        body = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        return f"**{self.title}**\n\n{body}"


def measured_tables(measured: Measurements) -> list[Table]:
    """Return the tables of the measured costs."""
    return [_loops(measured), _study(measured), _trackers(measured), _writes(measured)]


def _loops(measured: Measurements) -> Table:
    rows = [
        [
            f"{loop.slots}",
            f"{loop.short.trials / loop.short.seconds:.1f}",
            f"{loop.long.reports / loop.long.seconds:.0f}",
            f"{_ms(loop.report)} ({_ms(loop.report_cpu)})",
            f"{_ms(loop.trial)} ({_ms(loop.trial_cpu)})",
            f"{loop.paced.busy:.3f}",
            f"{loop.paced.late:.1f}",
        ]
        for loop in measured.loops
    ]
    heads = ["slots", "trials/s, 1 instant epoch each", "reports/s, long instant trials"]
    heads += ["ms per report (CPU time)", "ms per trial (CPU time)"]
    heads += ["busy slots, 1 s epochs", "last MLflow write after the last trial, s"]
    trip = f"a single slot's report takes {_ms(measured.round_trip)} ms"
    return Table(f"Driver loop: real Ray, study and MLflow on sqlite; {trip}", heads, rows)


def _study(measured: Measurements) -> Table:
    rows = [
        [
            f"{cost.trials}",
            _ms(cost.start),
            _ms(cost.report),
            f"{_ms(cost.epoch)} ({_ms(cost.epoch_cpu)})",
            _ms(cost.end),
        ]
        for cost in measured.study
    ]
    heads = ["trials in the study", "ms per trial start (TPE)", "ms per report of 1 epoch"]
    heads += ["ms per further epoch in a report (CPU time)", "ms per trial end"]
    return Table("Study: Optuna on sqlite, included in the driver loop above", heads, rows)


def _trackers(measured: Measurements) -> Table:
    rows = [
        [name, _ms(cost.batch + cost.epoch), _ms(cost.epoch), _ms(cost.trial)]
        for name, cost in measured.trackers.items()
    ]
    left_out = f"; {measured.left_out}" if measured.left_out else ""
    heads = ["tracker", "ms per batch of 1 epoch", "ms per further epoch in a batch"]
    heads += ["ms per trial"]
    return Table(f"MLflow: the writer's thread{left_out}", heads, rows)


def _writes(measured: Measurements) -> Table:
    rows = [
        [
            cost.name,
            f"{cost.size / 1e6:.1f}",
            _ms(cost.alone),
            *(f"{rate:.0f} ({rate * cost.size / 1e6:.0f})" for rate in cost.rates.values()),
        ]
        for cost in measured.stores
    ]
    heads = ["checkpoint", "MB", "ms per file, 1 writer"]
    heads += [f"files/s (MB/s), writers: {writers}" for writers in measured.stores[0].rates]
    return Table("Storage: files written, flushed to the disk and renamed", heads, rows)


def simulated_tables(
    checks: Sequence[SimulationCheck], results: Sequence[ScenarioResult]
) -> list[Table]:
    """Return the tables of the simulation."""
    return [
        _checks(checks),
        *(_outcomes(result) for result in results),
        _saturation(results),
        _report_intervals(results),
    ]


def _checks(checks: Sequence[SimulationCheck]) -> Table:
    rows = [
        [
            f"{check.slots}",
            *(f"{share:.3f}" for share in check.busy),
            f"{check.busy[1] - check.busy[0]:+.3f}",
            *(f"{rate:.1f}" for rate in check.reports),
            f"{check.reports[1] / check.reports[0] - 1:+.1%}",
        ]
        for check in checks
    ]
    heads = ["slots", "busy slots, real", "simulated", "error"]
    heads += ["reports/s, real", "simulated", "error"]
    return Table("The simulation compared with real searches, epochs of 1 s", heads, rows)


def _outcomes(result: ScenarioResult) -> Table:
    parts = list(next(iter(result.outcomes.values())).loads)
    rows = [
        [
            f"{gpus}",
            f"{outcome.busy:.0%}",
            *(f"{outcome.loads[part]:.0%}" for part in parts),
            f"{outcome.reports_per_second:.1f}",
            f"{outcome.trials_per_second:.2f}",
            ", ".join(f"{seconds:.0f}" for seconds in outcome.backlog.values()),
        ]
        for gpus, outcome in result.outcomes.items()
    ]
    heads = ["GPUs", "busy slots", *parts]
    heads += ["reports/s", "trials/s", "MLflow backlog at the end, s"]
    return Table(f"Simulated: trials of {result.scenario}; load of each part", heads, rows)


def _saturation(results: Sequence[ScenarioResult]) -> Table:
    rows = []
    for result in results:
        fewest = result.saturation
        parts = (DRIVER, SERVER if SERVER in fewest else SQLITE, STORAGE)
        rows.append(
            [
                result.scenario,
                f"{_gpus(fewest[DRIVER])} ({_gpus(result.computing_only[DRIVER])})",
                *(_gpus(fewest[name]) if name in fewest else "–" for name in (SQLITE, SERVER)),
                _gpus(fewest[STORAGE]),
                min(parts, key=lambda part: fewest[part]),
            ]
        )
    heads = ["trials", f"{DRIVER} (with a core of its own)", SQLITE, SERVER, STORAGE]
    heads += ["saturated first"]
    return Table("Number of GPUs that saturates each part", heads, rows)


def _report_intervals(results: Sequence[ScenarioResult]) -> Table:
    rows = [
        [result.scenario, *(f"{result.rules[seconds]:.0%}" for seconds in REPORT_INTERVALS)]
        for result in results
    ]
    most = max(max(result.outcomes) for result in results)
    heads = ["trials", *(f"a report every {seconds:g} s" for seconds in REPORT_INTERVALS)]
    return Table(f"Busy slots on {most} GPUs, by report interval", heads, rows)


def section(tables: Sequence[Table], facts: Mapping[str, str], *, quick: bool) -> str:
    """Return the section of the page, between the same markers as the benchmark's."""
    title = "## Scale, quick run" if quick else "## Scale"
    head = "\n".join(f"{name}: {text}  " for name, text in facts.items())
    return "\n\n".join([f"{BEGIN}\n{title}", head, *(t.markdown() for t in tables), END])


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f}"


def _gpus(count: int) -> str:
    return "never" if count >= MAX_SLOTS else f"{count}"
