"""Tabulate the winner's metrics, and what the selection cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from resp_tune.common.choices import METRIC_MODES
from resp_tune.reporting.baseline_comparison import baseline
from resp_tune.reporting.format import NAMES, metric_name, spread
from resp_tune.reporting.replicate_table import winner_replicates
from resp_tune.reporting.results import interval, mapping, number


@dataclass(frozen=True)
class MetricRow:
    """One metric of the winner on validation and test, with its baselines.

    `by_seed` is the mean ± sd over the seeds, each seed's networks alone, on the test split.
    """

    name: str
    validation: float | None
    test: float | None
    interval: tuple[float, float] | None
    by_seed: str
    device: float | None
    all: float | None
    objective: bool


@dataclass(frozen=True)
class Price:
    """The search's best validation score and the winner's test score.

    `test` is of one seed, as the best score is: with replicates the mean over single seeds. `gap`
    is above 0 if validation is optimistic, in the metric's own units.
    """

    gap: float
    validation: float
    test: float
    text: str


def metric_rows(summary: Mapping[str, Any]) -> list[MetricRow]:
    """Return every metric of the winner, the objective first."""
    winner = mapping(summary.get("winner"))
    validation, test = mapping(winner.get("validation")), mapping(winner.get("test"))
    intervals, seeds = mapping(test.get("intervals")), mapping(test.get("by_seed"))
    metric = str(summary.get("metric"))
    keys = [k for k in dict.fromkeys([metric, *NAMES, *validation]) if k in {*validation, *test}]
    return [
        MetricRow(
            metric_name(str(key)),
            number(validation.get(key)),
            number(test.get(key)),
            interval(intervals.get(key)),
            spread(*(number(mapping(seeds.get(key)).get(k)) for k in ("mean", "sd"))),
            baseline(summary, "device", str(key)),
            baseline(summary, "all", str(key)),
            key == metric,
        )
        for key in keys
    ]


def price_of_searching(summary: Mapping[str, Any]) -> Price | None:
    """Return by how much the best validation score is optimistic.

    Older summaries lack the best score; the winner's own serves.
    """
    metric, winner = str(summary.get("metric")), mapping(summary.get("winner"))
    fields = mapping(winner.get("price_of_searching"))
    best = number(fields.get("best_validation", mapping(winner.get("validation")).get(metric)))
    test = number(fields.get("test", mapping(winner.get("test")).get(metric)))
    if best is None or test is None:
        return None
    signed = test - best if METRIC_MODES.get(metric) == "min" else best - test
    gap = number(fields.get("difference", signed))
    if gap is None:
        return None
    who = "One seed of the winner, on average," if winner_replicates(winner) else "The winner"
    than = "on the test split than the search's best trial on validation"
    if gap > 0:
        text = (
            f"{who} does worse {than}. The best of many trials is partly luck, and the "
            "splits hold different patients."
        )
    else:
        text = f"{who} does no worse {than}; with so few patients that is chance as well."
    return Price(gap, best, test, text)
