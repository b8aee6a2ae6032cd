"""Figures of what was tried: parameters of the finished trials against their scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from resp_tune.reporting.format import metric_name
from resp_tune.reporting.plots import Chart, Plot, hover, layout_of, parameters, ranked, shown
from resp_tune.reporting.results import Row, number

LOGARITHMIC = ("lr", "weight_decay")
LINES = 150
SLICES = 12


def parallel(trials: Sequence[Row], metric: str, winner: str) -> Chart | None:
    """A line a finished trial through its parameters to its score, the better the stronger."""
    best = ranked(trials, metric)[:LINES]
    fields = parameters(trials)
    if len(best) < 2 or not fields:
        return None
    axes = [_Axis.of(name, [row[name] for row in best]) for name in fields]
    scores = _Axis.of("score", [row["score"] for row in best], plain=True)
    axes.append(scores)
    data: list[Plot] = []
    for rank, row in reversed(list(enumerate(best))):
        share = 1 - rank / max(len(best) - 1, 1)
        chosen = row["number"] == winner
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "showlegend": False,
                "x": list(range(len(axes))),
                "y": [axis.at(row[axis.column]) for axis in axes],
                "text": [hover(row)] * len(axes),
                "hovertemplate": "%{text}<extra></extra>",
                "opacity": 1 if chosen else 0.15 + 0.6 * share**2,
                "line": {
                    "color": "var(--accent)" if chosen else "var(--finished)",
                    "width": 3.5 if chosen else 1.5,
                },
            }
        )
    layout = layout_of("", "")
    layout["xaxis"] |= {
        "tickvals": list(range(len(axes))),
        "ticktext": [
            f"{shown(a.column if a is not scores else metric_name(metric), 22)}" for a in axes
        ],
        "range": [-0.3, len(axes) - 0.7],
        "zeroline": False,
    }
    layout["yaxis"] |= {"visible": False, "range": [-0.12, 1.1]}
    layout["hovermode"] = "closest"
    layout["annotations"] = [
        {"x": i, "y": y, "text": shown(text, 12), "showarrow": False, "yanchor": anchor}
        | {"font": {"size": 11, "color": "var(--muted)"}, "bgcolor": "var(--card)"}
        for i, axis in enumerate(axes)
        for y, text, anchor in ((0, axis.ends[0], "top"), (1, axis.ends[1], "bottom"))
    ]
    return Chart(
        "parallel",
        "Parameters of the finished trials",
        f"Each line is one of the {len(best)} best finished trials; it runs through its"
        f" parameters to its {metric_name(metric)} on the right. The winner's is thick; fainter"
        " lines scored worse. Learning rates and what else spans decades is drawn by logarithm.",
        {"data": data, "layout": layout},
        height=420,
        least_width=85 * len(axes),
    )


def slices(trials: Sequence[Row], metric: str) -> list[Chart]:
    """Score against each parameter: which values did well, and which were never tried."""
    scored = ranked(trials, metric)
    charts = []
    for k, name in enumerate(parameters(trials)[:SLICES] if len(scored) > 1 else ()):
        axis = _Axis.of(name, [row[name] for row in scored])
        numeric = axis.values is None
        layout = layout_of(shown(name), "")
        layout["margin"] = {"l": 44, "r": 8, "t": 8, "b": 44}
        layout["showlegend"] = False
        layout["xaxis"]["type"] = "category" if not numeric else "log" if axis.log else "linear"
        if axis.log:
            layout["xaxis"]["dtick"] = "D2"
        data = [
            {
                "type": "scatter",
                "mode": "markers",
                "x": [number(r[name]) if numeric else shown(r[name], 14) for r in scored],
                "y": [number(row["score"]) for row in scored],
                "text": [hover(row) for row in scored],
                "hovertemplate": "%{text}<extra></extra>",
                "marker": {"color": "var(--finished)", "size": 7, "opacity": 0.75},
            }
        ]
        charts.append(
            Chart(
                f"slice{k}",
                name,
                f"{metric_name(metric)} of finished trials against {name}.",
                {"data": data, "layout": layout},
                height=220,
            )
        )
    return charts


@dataclass(frozen=True)
class _Axis:
    """One axis of the parallel plot: numbers, by logarithm or not, or the values as they are."""

    column: str
    low: float
    high: float
    log: bool
    values: tuple[str, ...] | None

    @classmethod
    def of(cls, column: str, cells: Sequence[str], *, plain: bool = False) -> _Axis:
        numbers = [number(cell) for cell in cells]
        known = [v for v in numbers if v is not None]
        if not known or len(known) < len(numbers):
            return cls(column, 0, 0, False, tuple(sorted(set(cells))))
        low, high = min(known), max(known)
        log = low > 0 and (column in LOGARITHMIC or high / low > 100)
        return cls(column, low, high, log and not plain, None)

    @property
    def ends(self) -> tuple[str, str]:
        if self.values is not None:
            return (
                (self.values[0], self.values[-1]) if len(self.values) > 1 else ("", self.values[0])
            )
        return (
            ("", f"{self.high:.3g}")
            if self.low == self.high
            else (
                f"{self.low:.3g}",
                f"{self.high:.3g}",
            )
        )

    def at(self, cell: str) -> float:
        """Height of a cell on this axis, 0 to 1; what stands alone is in the middle."""
        if self.values is not None:
            return self.values.index(cell) / (len(self.values) - 1) if len(self.values) > 1 else 0.5
        value = number(cell)
        if value is None or self.low == self.high:
            return 0.5
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)
