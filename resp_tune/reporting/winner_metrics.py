"""What the result files say of the winner, in the numbers of the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from resp_tune.reporting.baseline_comparison import baseline
from resp_tune.reporting.format import LOWER_IS_BETTER, NAMES, metric_name, spread
from resp_tune.reporting.replicate_table import replicated
from resp_tune.reporting.results import ends, mapping, number


@dataclass(frozen=True)
class Figure:
    """One metric of the winner on both sides; None where it is not known.

    `by_seed` is the mean ± sd of each seed's networks alone on the test side.
    """

    name: str
    validation: float | None
    test: float | None
    low: float | None
    high: float | None
    by_seed: str
    device: float | None
    all: float | None
    objective: bool


@dataclass(frozen=True)
class Price:
    """What the search's best validation score promised, and what the winner's test gave.

    `test` is of one seed as the best score is: with replicates the mean over single seeds. `gap` is
    above 0 where validation flatters, in the metric's own units.
    """

    gap: float
    validation: float
    test: float
    text: str


def figures(summary: Mapping[str, Any]) -> list[Figure]:
    """Every metric of the winner, the one that was searched for first."""
    winner = mapping(summary.get("winner"))
    validation, test = mapping(winner.get("validation")), mapping(winner.get("test"))
    intervals, seeds = mapping(test.get("intervals")), mapping(test.get("by_seed"))
    metric = str(summary.get("metric"))
    keys = [k for k in dict.fromkeys([metric, *NAMES, *validation]) if k in {*validation, *test}]
    return [
        Figure(
            metric_name(str(key)),
            number(validation.get(key)),
            number(test.get(key)),
            *ends(intervals.get(key)),
            spread(*(number(mapping(seeds.get(key)).get(k)) for k in ("mean", "sd"))),
            baseline(summary, "device", str(key)),
            baseline(summary, "all", str(key)),
            key == metric,
        )
        for key in keys
    ]


def price(summary: Mapping[str, Any]) -> Price | None:
    """By how much the best validation score flatters; the winner's own in older summaries."""
    metric, winner = str(summary.get("metric")), mapping(summary.get("winner"))
    told = mapping(winner.get("price_of_searching"))
    best = number(told.get("best_validation", mapping(winner.get("validation")).get(metric)))
    test = number(told.get("test", mapping(winner.get("test")).get(metric)))
    if best is None or test is None:
        return None
    signed = test - best if metric in LOWER_IS_BETTER else best - test
    gap = number(told.get("difference", signed))
    if gap is None:
        return None
    who = "One seed of the winner, on average," if replicated(winner) else "The winner"
    than = "on the test side than the search's best trial on validation"
    if gap > 0:
        text = (
            f"{who} does worse {than}. The best of many trials is partly lucky, and the sides hold "
            "different patients."
        )
    else:
        text = f"{who} does no worse {than}; with so few patients that is chance as well."
    return Price(gap, best, test, text)
