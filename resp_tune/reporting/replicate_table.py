"""Judge the selection: what it cost, and the best trials on fresh seeds. Was it luck?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from resp_tune.common.choices import METRIC_MODES
from resp_tune.common.text import plural
from resp_tune.reporting.dot_plots import DotTable, Line, Mark, dot_table
from resp_tune.reporting.format import MINUS, figure, metric_name, spread
from resp_tune.reporting.json_values import items, mapping, number, objective, value_at


@dataclass(frozen=True)
class CandidateRow:
    """A trial that was rerun: a score a seed, and the score that made it a candidate."""

    number: int
    search_score: float | None
    scores: tuple[tuple[str, float], ...]  # seed, score
    mean: float | None
    sd: float | None
    bound: float | None
    dropped: bool


@dataclass(frozen=True)
class Price:
    """The search's best validation score and the winner's test score.

    `test` is of one seed of one trial, as the best score is: with replicates the mean over single
    seeds, of an ensemble that of its best trial. `gap`
    is above 0 if validation is optimistic, in the metric's own units.
    """

    gap: float
    validation: float
    test: float
    text: str


def candidates(summary: Mapping[str, Any]) -> list[CandidateRow]:
    """Return the trials that were rerun on fresh seeds, best bound first as in the file."""
    found = []
    for fields in items(summary, "candidates"):
        if (known := number(fields, "number")) is None:
            continue
        pairs = zip(items(fields, "seeds"), items(fields, "scores"), strict=False)
        scores = tuple((str(seed), s) for seed, value in pairs if (s := number(value)) is not None)
        figures = {k: number(fields, k) for k in ("search_score", "mean", "sd", "bound")}
        dropped = value_at(fields, "dropped") is True
        found.append(CandidateRow(number=int(known), scores=scores, dropped=dropped, **figures))
    return found


def winner_replicates(winner: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return mean, sd and number of the scores that the winner was selected by, if it was rerun."""
    mean, sd = (number(winner, "replicates", key) for key in ("mean", "sd"))
    scores = len(items(winner, "replicates", "scores"))
    return None if mean is None else {"mean": mean, "sd": sd, "scores": scores}


def candidate_table(
    found: Sequence[CandidateRow], metric: str, winner: Mapping[str, Any]
) -> DotTable | None:
    """Return a line a candidate: its score on each seed, its bound, its score in the search."""
    sign = "+" if METRIC_MODES.get(metric) == "min" else MINUS
    lines = []
    for c in found:
        marks = [Mark(score, "dot", f"seed {seed}: {score:.3f}") for seed, score in c.scores]
        if c.bound is not None:
            marks.append(Mark(c.bound, "bound", f"bound {c.bound:.3f}"))
        if c.search_score is not None:
            marks.append(Mark(c.search_score, "ring", f"in the search {c.search_score:.3f}"))
        members = [number(member, "number") for member in items(winner, "ensemble")]
        ours = c.number == winner.get("number") or c.number in members
        state = "dropped early" if c.dropped else ""
        if ours:
            state = "in the ensemble" if members else "the winner"
        seeds = str(len(c.scores))
        cells = (spread(c.mean, c.sd), figure(c.bound), figure(c.search_score), seeds)
        tone = "ours" if ours else "pale" if c.dropped else ""
        lines.append(Line(f"trial {c.number}", tuple(marks), cells, state, tone=tone))
    score = f"validation {metric_name(metric)}"
    headers = ("", score, "mean ± sd", "bound", "in the search", "seeds")
    wins = "; the best one wins" if winner_replicates(winner) else ""
    wins = "; the best ones make the ensemble" if items(winner, "ensemble") else wins
    legend = (
        ("dot", "one fresh seed"),
        ("bound", f"bound: mean {sign} standard error{wins}"),
        ("ring", "its score in the search, which made it a candidate"),
    )
    return dot_table(headers, lines, legend=legend)


def explain_candidates(
    found: Sequence[CandidateRow], metric: str, winner: Mapping[str, Any]
) -> list[str]:
    """Return sentences on the candidates, none without candidates."""
    if not found:
        return []
    chosen = winner_replicates(winner) is not None
    counts = [len(c.scores) for c in found]
    most = ("up to " if min(counts) < max(counts) else "") + plural(max(counts), "fresh seed")
    were = "was" if len(found) == 1 else "were"
    again = f"The {plural(len(found), 'best trial')} of the search {were} rerun on {most} each"
    if chosen:
        sentences = [f"{again}; the scores that made them candidates do not count."]
    else:
        sentences = [
            "The winner was selected by its one score in the search, which is optimistic: too few "
            "fresh seeds have run to select by them.",
            *([f"{again}."] if max(counts) else []),
        ]
    sign = -1 if METRIC_MODES.get(metric) == "min" else 1
    known = [(c, c.search_score, c.mean) for c in found if c.search_score is not None]
    moves = [mean - score for _, score, mean in known if mean is not None]
    if moves:
        move = fmean(moves)
        relation = "above" if move > 0 else "below"
        luck = ": the best of many scores is partly luck" if sign * move < 0 else ""
        sentences.append(
            f"Their means are {abs(move):.3f} {relation} their scores in the search{luck}."
        )
    if known and chosen:
        first = max(known, key=lambda k: sign * k[1])[0]
        if first.number != winner.get("number"):
            sentences.append(
                f"One seed alone would have selected trial {first.number}, the first in the search."
            )
    return sentences


def price_of_searching(summary: Mapping[str, Any]) -> Price | None:
    """Return by how much the best validation score is optimistic.

    Older summaries lack the best score; the winner's own serves.
    """
    metric, winner = objective(summary), mapping(summary, "winner")
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
    who = "The best trial of the winner, alone," if items(winner, "ensemble") else who
    than = "on the test split than the search's best trial on validation"
    if gap > 0:
        text = (
            f"{who} does worse {than}. The best of many trials is partly luck, and the "
            "splits hold different patients."
        )
    else:
        text = f"{who} does no worse {than}; with so few patients that is chance as well."
    return Price(gap, best, test, text)
