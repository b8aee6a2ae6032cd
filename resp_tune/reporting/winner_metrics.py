"""Tabulate the winner's metrics, and what the selection cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from resp_tune.common.choices import METRIC_MODES
from resp_tune.reporting.baseline_comparison import baseline
from resp_tune.reporting.format import NAMES, metric_name, spread
from resp_tune.reporting.replicate_table import winner_replicates
from resp_tune.reporting.results import interval, mapping, number, value_at


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


def metric_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return every metric of the winner and its baselines, the objective first.

    `by_seed` is the mean ± sd over the seeds, each seed's networks alone, on the test split.
    """
    winner, objective = mapping(summary, "winner"), str(summary.get("metric"))
    validation, test = mapping(winner, "validation"), mapping(winner, "test")
    keys = [k for k in dict.fromkeys([objective, *NAMES, *validation]) if k in {*validation, *test}]
    return [
        {
            "name": metric_name(key),
            "validation": number(validation, key),
            "test": number(test, key),
            "interval": interval(test, "intervals", key),
            "by_seed": spread(*(number(test, "by_seed", key, k) for k in ("mean", "sd"))),
            "device": baseline(summary, "device", key),
            "all": baseline(summary, "all", key),
            "objective": key == objective,
        }
        for key in keys
    ]


def price_of_searching(summary: Mapping[str, Any]) -> Price | None:
    """Return by how much the best validation score is optimistic.

    Older summaries lack the best score; the winner's own serves.
    """
    metric, winner = str(summary.get("metric")), mapping(summary, "winner")
    fields = mapping(winner, "price_of_searching")
    best = number(fields.get("best_validation", value_at(winner, "validation", metric)))
    test = number(fields.get("test", value_at(winner, "test", metric)))
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
