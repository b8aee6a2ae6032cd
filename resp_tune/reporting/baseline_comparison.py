"""Has the winner learnt from the sound? It beside what can be had without listening."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from resp_tune.reporting.dot_plots import Line, Mark, Strips, strips
from resp_tune.reporting.format import MINUS, figure, metric_name, signed
from resp_tune.reporting.results import ends, mapping, number

BASELINES = {
    "device": "Device only",
    "all": "Device, place, age, sex only",
}
SHEETS = {"device": "the device alone", "all": "the data sheet (device, place, age, sex)"}
# Words and shapes as well as colours: green alone says nothing to one man in twelve.
JUDGED = {
    "better": ("winner better", "diamond"),
    "worse": ("winner worse", "diamond"),
    "open": ("cannot be told", "ring"),
}


@dataclass(frozen=True)
class Bar:
    """One line of a comparison: a value in 0…1, its 95 % interval if it has one."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    ours: bool = False


@dataclass(frozen=True)
class Paired:
    """The winner minus a baseline on the same patients drawn, with its 95 % interval.

    Of metrics where more is better.
    """

    key: str
    metric: str
    winner: float
    baseline: float
    difference: float
    low: float
    high: float

    @property
    def judged(self) -> str:
        """`better`, `worse`, or `open` where the interval holds 0."""
        if self.low <= 0 <= self.high:
            return "open"
        return "better" if self.low > 0 else "worse"


def comparison_metric(summary: Mapping[str, Any]) -> str:
    """The metric to set beside the baselines: the objective, where they have it."""
    metric = str(summary.get("metric"))
    known = mapping(mapping(summary.get("baselines")).get("device"))
    return metric if metric in known or not known else "macro_f1"


def comparison(summary: Mapping[str, Any]) -> list[Bar]:
    """The winner beside what can be had without listening, best evidence first."""
    metric = comparison_metric(summary)
    winner = mapping(summary.get("winner"))
    test = mapping(winner.get("test"))
    low, high = ends(mapping(test.get("intervals")).get(metric))
    found = [
        Bar("Winner, test side", value, low, high, ours=True)
        for value in [number(test.get(metric))]
        if value is not None
    ]
    for label, value in (
        ("Winner, validation side", number(mapping(winner.get("validation")).get(metric))),
        *((label, baseline(summary, key, metric)) for key, label in BASELINES.items()),
    ):
        if value is not None:
            found.append(Bar(label, value, ours=label.startswith("Winner")))
    return found


def baseline(summary: Mapping[str, Any], key: str, metric: str) -> float | None:
    """What is had without audio: on the test side's own clips where it is known, else on all."""
    on_test = mapping(mapping(_against(summary).get(key)).get(metric))
    found = number(on_test.get("baseline"))
    everywhere = mapping(mapping(summary.get("baselines")).get(key))
    return number(everywhere.get(metric)) if found is None else found


def paired(summary: Mapping[str, Any]) -> list[Paired]:
    """Every difference that is known with its interval, the compared metric first."""
    found = []
    for key in BASELINES:
        for metric, entry in mapping(_against(summary).get(key)).items():
            told = mapping(entry)
            low, high = ends(told.get("interval"))
            values = [number(told.get(k)) for k in ("winner", "baseline", "difference")]
            known = [v for v in (*values, low, high) if v is not None]
            if len(known) == 5:
                found.append(Paired(key, str(metric), *known))
    first = comparison_metric(summary)
    return sorted(found, key=lambda p: (p.metric != first, p.metric))


def forest(summary: Mapping[str, Any]) -> Strips | None:
    """The differences with their intervals about a line at 0."""
    lines = []
    for p in paired(summary):
        words, shape = JUDGED[p.judged]
        lines.append(
            Line(
                BASELINES[p.key],
                (Mark(p.difference, shape),),
                (f"{signed(p.difference)} [{signed(p.low)}, {signed(p.high)}]", words),
                f"{metric_name(p.metric)}: {figure(p.winner)} {MINUS} {figure(p.baseline)}",
                (p.low, p.high),
                p.judged,
            )
        )
    heads = ("winner minus", "difference", "with 95 % interval", "verdict")
    return strips(heads, lines, zero=True)


def verdict(summary: Mapping[str, Any]) -> str:
    """One sentence on whether the winner has learnt from sound."""
    metric = comparison_metric(summary)
    rivals = [p for p in paired(summary) if p.metric == metric]
    if rivals:
        return _paired_verdict(rivals)
    test = mapping(mapping(summary.get("winner")).get("test"))
    rival = max((v for key in BASELINES if (v := baseline(summary, key, metric))), default=0)
    value = number(test.get(metric))
    low, high = ends(mapping(test.get("intervals")).get(metric))
    if value is None:
        return (
            "There is no reading of a test side: the validation figures are those the search "
            "chose by, and flatter it."
        )
    if not rival:
        return "No baseline without audio is known: what these figures are worth stays open."
    if low is None or high is None:
        side = "above" if value > rival else "not above"
        return f"On the test side it stands {side} the best baseline without audio ({rival:.3f})."
    if low > rival:
        return (
            f"The whole 95 % interval lies above the best baseline without audio ({rival:.3f}): "
            "the model has learnt from the sound."
        )
    if high < rival:
        return (
            f"The whole 95 % interval lies below the best baseline without audio ({rival:.3f}): "
            "the stethoscope and the patient's age tell more than this model does."
        )
    return (
        f"The 95 % interval holds the best baseline without audio ({rival:.3f}): on this test "
        "side it cannot be told whether the model has learnt more than who was recorded with what."
    )


def _paired_verdict(rivals: list[Paired]) -> str:
    name = metric_name(rivals[0].metric)
    beaten = [SHEETS[p.key] for p in rivals if p.judged == "better"]
    if len(beaten) == len(rivals):
        best = max(rivals, key=lambda p: p.baseline)
        return (
            f"The model has learnt from the sound: on the same patients its {name} stands "
            f"{best.difference:.3f} above what {SHEETS[best.key]} gives, the best baseline without "
            "audio, and the whole 95 % interval of the difference to each lies above 0."
        )
    worse = [p for p in rivals if p.judged == "worse"]
    hardest = min(worse or rivals, key=lambda p: p.low)
    sheet = SHEETS[hardest.key]
    if worse:
        return (
            f"The model has learnt less than {sheet} gives away: on the same patients its {name} "
            f"stands {-hardest.difference:.3f} below, and the whole 95 % interval of the "
            "difference lies below 0."
        )
    start = f"The model beats {beaten[0]}, but it" if beaten else "It"
    return (
        f"{start} cannot be told whether the sound has taught it more than {sheet} gives away: the "
        f"difference in {name} is {signed(hardest.difference)}, and its 95 % interval holds 0."
    )


def _against(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    return mapping(mapping(mapping(summary.get("winner")).get("test")).get("against"))
