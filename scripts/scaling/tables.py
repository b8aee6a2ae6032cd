"""The figures as tables, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.tables import BEGIN, END
from rich.table import Table as RichTable

from scaling.events import DRIVER, MOST, STORAGE
from scaling.measured import Measured
from scaling.scenarios import RULES, Checked, Scaled
from scaling.trackers import SERVER, SQLITE


@dataclass(frozen=True)
class Table:
    """A title, the heads of the columns, the cells."""

    title: str
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]

    def rich(self) -> RichTable:
        """For a terminal."""
        table = RichTable(*self.heads, title=self.title, title_justify="left")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        """For a page."""
        lines = [self.heads, ["---"] * len(self.heads), *self.rows]
        body = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
        return f"**{self.title}**\n\n{body}"


def measured_tables(measured: Measured) -> list[Table]:
    """What was really run."""
    return [_loops(measured), _study(measured), _trackers(measured), _stores(measured)]


def _loops(measured: Measured) -> Table:
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
    heads += ["ms a report (computing)", "ms a trial (computing)"]
    heads += ["slots busy, 1 s epochs", "MLflow ready after the last end, s"]
    trip = f"a lone slot's report takes {_ms(measured.round_trip)} ms"
    return Table(f"Driver loop: real Ray, study and MLflow on sqlite; {trip}", heads, rows)


def _study(measured: Measured) -> Table:
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
    heads = ["trials in it", "ms a start (TPE)", "ms a report of 1 epoch"]
    heads += ["ms each further epoch in it (computing)", "ms an end"]
    return Table("Study: Optuna on sqlite, part of the loop's time above", heads, rows)


def _trackers(measured: Measured) -> Table:
    rows = [
        [name, _ms(cost.batch + cost.epoch), _ms(cost.epoch), _ms(cost.trial)]
        for name, cost in measured.trackers.items()
    ]
    left_out = f"; {measured.left_out}" if measured.left_out else ""
    heads = ["store", "ms a batch of 1 epoch", "ms each further epoch in it", "ms a trial"]
    return Table(f"MLflow: the writer's thread{left_out}", heads, rows)


def _stores(measured: Measured) -> Table:
    rows = [
        [
            cost.name,
            f"{cost.size / 1e6:.1f}",
            _ms(cost.alone),
            *(f"{rate:.0f} ({rate * cost.size / 1e6:.0f})" for rate in cost.rates.values()),
        ]
        for cost in measured.stores
    ]
    heads = ["checkpoint", "MB", "ms alone"]
    heads += [f"files/s (MB/s), {n} at once" for n in measured.stores[0].rates]
    return Table("Storage: written, flushed to the disk, renamed", heads, rows)


def simulated_tables(checks: Sequence[Checked], scaled: Sequence[Scaled]) -> list[Table]:
    """What follows from it."""
    return [
        _checks(checks),
        *(_outcomes(one) for one in scaled),
        _saturation(scaled),
        _rules(scaled),
    ]


def _checks(checks: Sequence[Checked]) -> Table:
    rows = [
        [
            f"{one.slots}",
            *(f"{share:.3f}" for share in one.busy),
            f"{one.busy[1] - one.busy[0]:+.3f}",
            *(f"{rate:.1f}" for rate in one.reports),
            f"{one.reports[1] / one.reports[0] - 1:+.1%}",
        ]
        for one in checks
    ]
    heads = ["slots", "busy, real", "simulated", "error", "reports/s, real", "simulated", "error"]
    return Table("The simulation beside the real runs of 1 s epochs", heads, rows)


def _outcomes(scaled: Scaled) -> Table:
    parts = list(next(iter(scaled.outcomes.values())).loads)
    rows = [
        [
            f"{gpus}",
            f"{one.busy:.0%}",
            *(f"{one.loads[part]:.0%}" for part in parts),
            f"{one.reports_per_second:.1f}",
            f"{one.trials_per_second:.2f}",
            ", ".join(f"{seconds:.0f}" for seconds in one.backlog.values()),
        ]
        for gpus, one in scaled.outcomes.items()
    ]
    heads = ["GPUs", "slots busy", *(f"{part}" for part in parts)]
    heads += ["reports/s", "trials/s", "MLflow behind at the end, s"]
    return Table(f"Simulated: trials of {scaled.scenario}; load of each part", heads, rows)


def _saturation(scaled: Sequence[Scaled]) -> Table:
    rows = []
    for one in scaled:
        found = one.saturation
        parts = (DRIVER, SERVER if SERVER in found else SQLITE, STORAGE)
        first = min(parts, key=lambda part: found[part])
        rows.append(
            [
                one.scenario,
                f"{_gpus(found[DRIVER])} ({_gpus(one.computing_only[DRIVER])})",
                *(_gpus(found[name]) if name in found else "–" for name in (SQLITE, SERVER)),
                _gpus(found[STORAGE]),
                first,
            ]
        )
    heads = ["trials of", f"{DRIVER} (a core to itself)", SQLITE, SERVER, STORAGE, "first"]
    return Table("GPUs at which each part has no second to spare", heads, rows)


def _rules(scaled: Sequence[Scaled]) -> Table:
    rows = [
        [one.scenario, *(f"{one.rules[rule]:.0%}" for rule in RULES)] for one in scaled if one.rules
    ]
    most = max(max(one.outcomes) for one in scaled)
    heads = ["trials of", *(f"a report every {rule:g} s" for rule in RULES)]
    return Table(f"Slots busy on {most} GPUs, were reports rarer", heads, rows)


def section(tables: Sequence[Table], facts: Mapping[str, str], *, quick: bool) -> str:
    """The run's own section, between the markers of the benchmark's."""
    title = "## Scale, quick run" if quick else "## Scale"
    head = "\n".join(f"{name}: {text}  " for name, text in facts.items())
    return "\n\n".join([f"{BEGIN}\n{title}", head, *(t.markdown() for t in tables), END])


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f}"


def _gpus(count: int) -> str:
    return "never" if count >= MOST else f"{count}"
