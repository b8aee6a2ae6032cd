"""Compare the winner's metrics with the baselines, and with published results."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from resp_tune.common.choices import METRIC_MODES, METRIC_NAMES
from resp_tune.reporting.dot_plots import DotTable, Line, Mark, dot_table
from resp_tune.reporting.format import MINUS, figure, metric_name, ranged, signed, spread
from resp_tune.reporting.json_values import interval, mapping, number, objective, value_at

AUDIO = "audio_linear"
BASELINES = {
    "device": "Device only", "all": "Device, location, age, sex", AUDIO: "Band statistics",
}  # fmt: skip
METADATA = {"device": "the device alone", "all": "the metadata (device, location, age, sex)"}
# Words and shapes as well as colours: one man in twelve cannot tell red from green.
OUTCOMES = {
    "better": ("winner better", "diamond"),
    "worse": ("winner worse", "diamond"),
    "open": ("inconclusive", "ring"),
}
# Cycles, official 60/40 split, networks from scratch: score in percent, its sd over ten runs.
PUBLISHED = (
    ("always “normal”", "no model", 50.0, None),
    ("CNN6", "cross entropy", 53.92, 0.71),
    ("CNN10", "cross entropy", 55.13, 1.56),
    ("CNN10", "hybrid, the best from scratch", 55.60, 1.13),
)


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


def metric_rows(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return every metric of the winner and its baselines, the objective first.

    `by_seed` is the mean ± sd over the seeds, each seed's networks alone, on the test split.
    """
    winner, first = mapping(summary, "winner"), objective(summary)
    validation, test = mapping(winner, "validation"), mapping(winner, "test")
    others = [key for key in validation if key not in METRIC_MODES]
    order = dict.fromkeys([first, *METRIC_NAMES, *others])
    keys = [key for key in order if key in validation or key in test]
    return [
        {
            "name": metric_name(key),
            "validation": number(validation, key),
            "test": number(test, key),
            "interval": interval(test, "intervals", key),
            "by_seed": spread(*(number(test, "by_seed", key, k) for k in ("mean", "sd"))),
            "baselines": [baseline(summary, name, key) for name in known_baselines(summary)],
            "objective": key == first,
        }
        for key in keys
    ]


def known_baselines(summary: Mapping[str, Any]) -> list[str]:
    """Return the keys of `BASELINES` that the summary has: release 0.1.0 had no band statistics."""
    return [key for key in BASELINES if key != AUDIO or key in mapping(summary, "baselines")]


def comparison_metric(summary: Mapping[str, Any]) -> str:
    """Return the objective if the baselines have it, else macro-F1."""
    metric, known = str(summary.get("metric")), mapping(summary, "baselines", "device")
    return metric if metric in known or not known else "macro_f1"


def comparison_table(summary: Mapping[str, Any]) -> DotTable | None:
    """Return the comparison metric of the winner, on test and validation, and of each baseline."""
    metric = comparison_metric(summary)
    winner = mapping(summary, "winner")
    span = interval(winner, "test", "intervals", metric)
    rows = [
        ("Winner, test split", number(winner, "test", metric), "diamond", span),
        ("Winner, validation split", number(winner, "validation", metric), "diamond", None),
        *((label, baseline(summary, k, metric), "dot", None) for k, label in BASELINES.items()),
    ]
    tones = {"diamond": "ours", "dot": ""}
    lines = [
        Line(label, (Mark(value, kind),), (ranged(value, whisker),), "", whisker, tones[kind])
        for label, value, kind, whisker in rows
        if value is not None
    ]
    return dot_table(("", metric_name(metric), "with 95 % interval"), lines, limits=(0.0, 1.0))


def baseline(summary: Mapping[str, Any], key: str, metric: str) -> float | None:
    """Return a baseline's metric on the clips of the test split if known, else on all data."""
    value = number(summary, "winner", "test", "against", key, metric, "baseline")
    return number(summary, "baselines", key, metric) if value is None else value


def paired_differences(summary: Mapping[str, Any]) -> list[PairedDifference]:
    """Return every difference that has an interval, the compared metric first."""
    found = []
    for key in BASELINES:
        for metric, fields in mapping(summary, "winner", "test", "against", key).items():
            values = [number(fields, k) for k in ("winner", "baseline", "difference")]
            known = [v for v in values if v is not None]
            span = interval(fields, "interval")
            if span and len(known) == len(values):
                found.append(PairedDifference(key, str(metric), span, *known))
    first = comparison_metric(summary)
    return sorted(found, key=lambda p: (p.metric != first, p.metric))


def forest_plot(summary: Mapping[str, Any]) -> DotTable | None:
    """Return the differences with their intervals about a line at 0."""
    lines = []
    for p in paired_differences(summary):
        (words, shape), (low, high) = OUTCOMES[p.outcome], p.interval
        marks = (Mark(p.difference, shape),)
        cells = (f"{signed(p.difference)} [{signed(low)}, {signed(high)}]", words)
        note = f"{metric_name(p.metric)}: {figure(p.winner)} {MINUS} {figure(p.baseline)}"
        lines.append(Line(BASELINES[p.key], marks, cells, note, p.interval, p.outcome))
    headers = ("winner minus", "difference", "with 95 % interval", "outcome")
    return dot_table(headers, lines, zero=True)


def verdict(summary: Mapping[str, Any]) -> str:
    """Return whether the winner has learnt from the sound, and more than its band statistics."""
    metric = comparison_metric(summary)
    differences = [p for p in paired_differences(summary) if p.metric == metric]
    if metadata := [p for p in differences if p.key in METADATA]:
        more = [_audio_verdict(p) for p in differences if p.key == AUDIO]
        return " ".join([_paired_verdict(metadata), *more])
    best = max((v for key in METADATA if (v := baseline(summary, key, metric))), default=0)
    value = number(summary, "winner", "test", metric)
    span = interval(summary, "winner", "test", "intervals", metric)
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
    start, baselines = "The whole 95 % interval is", f"the best baseline without audio ({best:.3f})"
    if span[0] > best:
        return f"{start} above {baselines}: the model has learnt from the sound."
    if span[1] < best:
        predict = "the stethoscope and the patient's age predict more than this model does"
        return f"{start} below {baselines}: {predict}."
    return (
        f"The 95 % interval includes {baselines}: this test split cannot show whether the model "
        "has learnt more than who was recorded with what."
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


def _audio_verdict(p: PairedDifference) -> str:
    found = f"its {metric_name(p.metric)} is {abs(p.difference):.3f}"
    if p.outcome == "better":
        return (
            f"It has learnt more than averages of the sound: {found} above that of a linear model "
            "of band statistics, and the 95 % interval of the difference is above 0."
        )
    if p.outcome == "worse":
        return (
            f"It has learnt less from the sound than a linear model of band statistics: {found} "
            "lower, and the 95 % interval of the difference is below 0."
        )
    return (
        "Whether it has learnt more from the sound than a linear model of band statistics is "
        f"inconclusive: the difference in {metric_name(p.metric)} is {signed(p.difference)}, and "
        "its 95 % interval includes 0."
    )


def published_table(summary: Mapping[str, Any], config: Mapping[str, Any]) -> DotTable | None:
    """Return ICBHI scores in percent, if real cycles of the whole official test split were scored.

    Without the two shared patients it is another test split, and nothing is comparable.
    """
    provenance = mapping(config, "provenance")
    test = mapping(summary, "winner", "test")
    score = number(test, "icbhi_score")
    fits = (summary.get("task"), summary.get("protocol")) == ("cycles", "official")
    synthetic = value_at(summary, "data", "synthetic") or provenance.get("synthetic")
    if not fits or synthetic or provenance.get("drop_shared_patients") or score is None:
        return None
    return dot_table(
        ("", "ICBHI score, %", "score", "spread"),
        [*_ours(test, score), *(_line(*row) for row in reversed(PUBLISHED))],
        legend=(
            ("diamond", "this search; whisker: 95 % interval over patients"),
            ("dot", "mean of runs; whisker: ± their standard deviation"),
        ),
    )


def _ours(test: Mapping[str, Any], score: float) -> list[Line]:
    ends = interval(test, "intervals", "icbhi_score")
    span = ends and (100 * ends[0], 100 * ends[1])
    mean, sd = (number(test, "by_seed", "icbhi_score", k) for k in ("mean", "sd"))
    note = "test split" if mean is None else "networks of all seeds averaged"
    cells = (f"{100 * score:.2f}", "" if span is None else f"[{span[0]:.1f}, {span[1]:.1f}]")
    lines = [Line("the winner", (Mark(100 * score, "diamond"),), cells, note, span, "ours")]
    if mean is not None:
        lines.append(_line("the winner", "each seed alone", 100 * mean, sd and 100 * sd, "ours"))
    return lines


def _line(label: str, note: str, mean: float, sd: float | None, tone: str = "") -> Line:
    deviation = "" if sd is None else f"± {sd:.2f}"
    span = None if sd is None else (mean - sd, mean + sd)
    return Line(label, (Mark(mean, "dot"),), (f"{mean:.2f}", deviation), note, span, tone)
