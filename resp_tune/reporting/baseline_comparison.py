"""Compare the winner with baselines that use no audio: has it learnt from the sound?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from resp_tune.reporting.dot_plots import DotTable, Line, Mark, dot_table
from resp_tune.reporting.format import MINUS, figure, metric_name, ranged, signed
from resp_tune.reporting.results import interval, mapping, number

BASELINES = {"device": "Device only", "all": "Device, location, age, sex"}
METADATA = {"device": "the device alone", "all": "the metadata (device, location, age, sex)"}
# Words and shapes as well as colours: one man in twelve cannot tell red from green.
OUTCOMES = {
    "better": ("winner better", "diamond"),
    "worse": ("winner worse", "diamond"),
    "open": ("inconclusive", "ring"),
}


@dataclass(frozen=True)
class PairedDifference:
    """The winner minus a baseline on the same resamples of the patients, with its 95 % interval.

    Only of metrics whose larger values are better.
    """

    key: str
    metric: str
    interval: tuple[float, float]
    winner: float
    baseline: float
    difference: float

    @property
    def outcome(self) -> str:
        """Return `better`, `worse`, or `open` if the interval includes 0."""
        low, high = self.interval
        return "better" if low > 0 else "worse" if high < 0 else "open"


def comparison_metric(summary: Mapping[str, Any]) -> str:
    """Return the objective if the baselines have it, else macro-F1."""
    metric = str(summary.get("metric"))
    known = mapping(mapping(summary.get("baselines")).get("device"))
    return metric if metric in known or not known else "macro_f1"


def comparison_table(summary: Mapping[str, Any]) -> DotTable | None:
    """Return the comparison metric of the winner, on test and validation, and of each baseline."""
    metric = comparison_metric(summary)
    winner = mapping(summary.get("winner"))
    test = mapping(winner.get("test"))
    values = {
        "Winner, test split": number(test.get(metric)),
        "Winner, validation split": number(mapping(winner.get("validation")).get(metric)),
        **{label: baseline(summary, key, metric) for key, label in BASELINES.items()},
    }
    lines = []
    for label, value in values.items():
        if value is not None:
            ours, tested = label.startswith("Winner"), label == "Winner, test split"
            span = interval(mapping(test.get("intervals")).get(metric)) if tested else None
            mark = Mark(value, "diamond" if ours else "dot")
            cells = (ranged(value, span),)
            lines.append(Line(label, (mark,), cells, span=span, tone="ours" if ours else ""))
    return dot_table(("", metric_name(metric), "with 95 % interval"), lines, limits=(0.0, 1.0))


def baseline(summary: Mapping[str, Any], key: str, metric: str) -> float | None:
    """Return a baseline's metric on the clips of the test split if known, else on all data."""
    on_test = mapping(mapping(_differences(summary).get(key)).get(metric))
    value = number(on_test.get("baseline"))
    everywhere = mapping(mapping(summary.get("baselines")).get(key))
    return number(everywhere.get(metric)) if value is None else value


def paired_differences(summary: Mapping[str, Any]) -> list[PairedDifference]:
    """Return every difference that has an interval, the compared metric first."""
    found = []
    for key in BASELINES:
        for metric, entry in mapping(_differences(summary).get(key)).items():
            fields = mapping(entry)
            values = [number(fields.get(k)) for k in ("winner", "baseline", "difference")]
            known = [v for v in values if v is not None]
            span = interval(fields.get("interval"))
            if span and len(known) == len(values):
                found.append(PairedDifference(key, str(metric), span, *known))
    first = comparison_metric(summary)
    return sorted(found, key=lambda p: (p.metric != first, p.metric))


def forest_plot(summary: Mapping[str, Any]) -> DotTable | None:
    """Return the differences with their intervals about a line at 0."""
    lines = []
    for p in paired_differences(summary):
        (words, shape), (low, high) = OUTCOMES[p.outcome], p.interval
        lines.append(
            Line(
                BASELINES[p.key],
                (Mark(p.difference, shape),),
                (f"{signed(p.difference)} [{signed(low)}, {signed(high)}]", words),
                f"{metric_name(p.metric)}: {figure(p.winner)} {MINUS} {figure(p.baseline)}",
                p.interval,
                p.outcome,
            )
        )
    headers = ("winner minus", "difference", "with 95 % interval", "outcome")
    return dot_table(headers, lines, zero=True)


def verdict(summary: Mapping[str, Any]) -> str:
    """Return a sentence on whether the winner has learnt from the sound."""
    metric = comparison_metric(summary)
    differences = [p for p in paired_differences(summary) if p.metric == metric]
    if differences:
        return _paired_verdict(differences)
    test = mapping(mapping(summary.get("winner")).get("test"))
    best = max((v for key in BASELINES if (v := baseline(summary, key, metric))), default=0)
    value = number(test.get(metric))
    span = interval(mapping(test.get("intervals")).get(metric))
    if value is None:
        return (
            "No test split was evaluated. The search selected by the validation metrics, which "
            "are therefore optimistic."
        )
    if not best:
        return "No baseline without audio is known, so these metrics cannot be judged."
    if span is None:
        relation = "above" if value > best else "not above"
        return f"On the test split it is {relation} the best baseline without audio ({best:.3f})."
    if span[0] > best:
        return (
            f"The whole 95 % interval is above the best baseline without audio ({best:.3f}): "
            "the model has learnt from the sound."
        )
    if span[1] < best:
        return (
            f"The whole 95 % interval is below the best baseline without audio ({best:.3f}): "
            "the stethoscope and the patient's age predict more than this model does."
        )
    return (
        f"The 95 % interval includes the best baseline without audio ({best:.3f}): this test "
        "split cannot show whether the model has learnt more than who was recorded with what."
    )


def _paired_verdict(differences: list[PairedDifference]) -> str:
    name = metric_name(differences[0].metric)
    beaten = [METADATA[p.key] for p in differences if p.outcome == "better"]
    if len(beaten) == len(differences):
        best = max(differences, key=lambda p: p.baseline)
        return (
            f"The model has learnt from the sound: on the same patients its {name} is "
            f"{best.difference:.3f} above that of {METADATA[best.key]}, the best baseline without "
            "audio, and the 95 % interval of the difference to each baseline is above 0."
        )
    worse = [p for p in differences if p.outcome == "worse"]
    hardest = min(worse or differences, key=lambda p: p.interval[0])
    metadata = METADATA[hardest.key]
    if worse:
        return (
            f"The model has learnt less than {metadata} gives away: on the same patients its "
            f"{name} is {-hardest.difference:.3f} lower, and the 95 % interval of the difference "
            "is below 0."
        )
    start = f"The model is better than {beaten[0]}, but whether" if beaten else "Whether"
    return (
        f"{start} the sound has taught it more than {metadata} gives away is inconclusive: the "
        f"difference in {name} is {signed(hardest.difference)}, and its 95 % interval includes 0."
    )


def _differences(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    return mapping(mapping(mapping(summary.get("winner")).get("test")).get("against"))
