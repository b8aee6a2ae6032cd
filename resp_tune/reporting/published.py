"""Compare the winner's ICBHI score with published results under the challenge's protocol."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from resp_tune.reporting.dot_plots import DotTable, Line, Mark, dot_table
from resp_tune.reporting.format import ranged
from resp_tune.reporting.results import Results, interval, mapping, number

# Cycles, official 60/40 split, networks from scratch: score in percent, its sd over ten runs.
PUBLISHED = (
    ("always “normal”", "no model", 50.0, None),
    ("CNN6", "cross entropy", 53.92, 0.71),
    ("CNN10", "cross entropy", 55.13, 1.56),
    ("CNN10", "hybrid, the best from scratch", 55.60, 1.13),
)
TERMS = {
    "sensitivity": "abnormal cycles predicted correctly",
    "specificity": "normal cycles predicted as normal",
}


def score_terms(results: Results) -> list[tuple[str, str, str]]:
    """Return sensitivity and specificity: name, value [interval], meaning."""
    test = mapping(mapping(results.summary.get("winner")).get("test"))
    spans = mapping(test.get("intervals"))
    return [
        (name.capitalize(), ranged(value, interval(spans.get(name))), what)
        for name, what in TERMS.items()
        if (value := number(test.get(name))) is not None
    ]


def published_table(results: Results) -> DotTable | None:
    """Return ICBHI scores in percent, if real cycles of the whole official test split were scored.

    Without the two shared patients it is another test split, and nothing is comparable.
    """
    summary, provenance = results.summary, mapping(results.config.get("provenance"))
    data = mapping(summary.get("data"))
    test = mapping(mapping(summary.get("winner")).get("test"))
    score = number(test.get("icbhi_score"))
    fits = (summary.get("task"), summary.get("protocol")) == ("cycles", "official")
    made = data.get("synthetic") or provenance.get("synthetic")
    if not fits or made or provenance.get("drop_shared_patients") or score is None:
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
    ends = interval(mapping(test.get("intervals")).get("icbhi_score"))
    span = ends and (100 * ends[0], 100 * ends[1])
    seeds = mapping(mapping(test.get("by_seed")).get("icbhi_score"))
    mean, sd = number(seeds.get("mean")), number(seeds.get("sd"))
    note = "test split" if mean is None else "networks of all seeds averaged"
    cells = (f"{100 * score:.2f}", "" if span is None else f"[{span[0]:.1f}, {span[1]:.1f}]")
    lines = [Line("the winner", (Mark(100 * score, "diamond"),), cells, note, span, "ours")]
    if mean is not None:
        lines.append(_line("the winner", "each seed alone", 100 * mean, sd and 100 * sd, "ours"))
    return lines


def _line(label: str, note: str, mean: float, sd: float | None, tone: str = "") -> Line:
    spread = "" if sd is None else f"± {sd:.2f}"
    span = None if sd is None else (mean - sd, mean + sd)
    return Line(label, (Mark(mean, "dot"),), (f"{mean:.2f}", spread), note, span, tone)
