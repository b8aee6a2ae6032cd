"""Was the choice luck? The best trials of the search on fresh seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from resp_tune.reporting.dot_plots import Line, Mark, Strips, strips
from resp_tune.reporting.format import LOWER_IS_BETTER, MINUS, counted, figure, metric_name, spread
from resp_tune.reporting.results import items, mapping, number


@dataclass(frozen=True)
class CandidateRow:
    """A trial that was run again: a score a seed, and the score that made it a candidate."""

    number: int
    search_score: float | None
    scores: tuple[tuple[str, float], ...]  # seed, score
    mean: float | None
    sd: float | None
    bound: float | None
    dropped: bool


@dataclass(frozen=True)
class Replicated:
    """The winner's validation score over so many fresh seeds."""

    mean: float
    sd: float | None
    scores: int


def candidates(summary: Mapping[str, Any]) -> list[CandidateRow]:
    """What was run again on fresh seeds, the best bound first as the file has it."""
    found = []
    for told in (mapping(c) for c in items(summary.get("candidates"))):
        named = number(told.get("number"))
        if named is None:
            continue
        pairs = zip(items(told.get("seeds")), items(told.get("scores")), strict=False)
        scores = [(str(seed), number(score)) for seed, score in pairs]
        found.append(
            CandidateRow(
                number=int(named),
                search_score=number(told.get("search_score")),
                scores=tuple((seed, score) for seed, score in scores if score is not None),
                mean=number(told.get("mean")),
                sd=number(told.get("sd")),
                bound=number(told.get("bound")),
                dropped=told.get("dropped") is True,
            )
        )
    return found


def replicated(winner: Mapping[str, Any]) -> Replicated | None:
    """What the winner was chosen by, None where that was its one score in the search."""
    told = mapping(winner.get("replicates"))
    mean, sd = number(told.get("mean")), number(told.get("sd"))
    return None if mean is None else Replicated(mean, sd, len(items(told.get("scores"))))


def strip_of(
    found: Sequence[CandidateRow], metric: str, winner: Mapping[str, Any]
) -> Strips | None:
    """A line a candidate: its score on each seed, its bound, and what the search had said."""
    sign = "+" if metric in LOWER_IS_BETTER else MINUS
    lines = []
    for c in found:
        marks = [Mark(score, "dot", f"seed {seed}: {score:.3f}") for seed, score in c.scores]
        if c.bound is not None:
            marks.append(Mark(c.bound, "bound", f"bound {c.bound:.3f}"))
        if c.search_score is not None:
            marks.append(Mark(c.search_score, "ring", f"in the search {c.search_score:.3f}"))
        ours = c.number == winner.get("number")
        state = "the winner" if ours else "dropped early" if c.dropped else ""
        seeds = str(len(c.scores))
        cells = (spread(c.mean, c.sd), figure(c.bound), figure(c.search_score), seeds)
        tone = "ours" if ours else "pale" if c.dropped else ""
        lines.append(Line(f"trial {c.number}", tuple(marks), cells, state, tone=tone))
    heads = (
        "",
        f"validation {metric_name(metric)}",
        "mean ± sd",
        "bound",
        "in the search",
        "seeds",
    )
    wins = "; the best one wins" if replicated(winner) else ""
    keys = (
        ("dot", "one fresh seed"),
        ("bound", f"bound: mean {sign} standard error{wins}"),
        ("ring", "its score in the search, which made it a candidate"),
    )
    return strips(heads, lines, keys=keys)


def told(found: Sequence[CandidateRow], metric: str, winner: Mapping[str, Any]) -> list[str]:
    """What the candidates teach, a sentence each; nothing without candidates."""
    if not found:
        return []
    chosen = replicated(winner) is not None
    counts = [len(c.scores) for c in found]
    most = ("up to " if min(counts) < max(counts) else "") + counted(max(counts), "fresh seed")
    again = f"The {counted(len(found), 'best trial')} of the search ran again on {most} each"
    sentences = []
    if chosen:
        sentences.append(f"{again}; the scores that made them candidates do not count.")
    else:
        sentences.append(
            "The winner was chosen by its one score in the search, which was picked for being "
            "high: too few fresh seeds have run to choose by them."
        )
        if max(counts):
            sentences.append(f"{again}.")
    sign = -1 if metric in LOWER_IS_BETTER else 1
    known = [(c, c.search_score, c.mean) for c in found if c.search_score is not None]
    moves = [mean - score for _, score, mean in known if mean is not None]
    if moves:
        move = fmean(moves)
        side = "above" if move > 0 else "below"
        luck = ": picking the best picks the lucky" if sign * move < 0 else ""
        sentences.append(
            f"Their means stand {abs(move):.3f} {side} their scores in the search{luck}."
        )
    if known and chosen:
        first = max(known, key=lambda k: sign * k[1])[0]
        if first.number != winner.get("number"):
            sentences.append(
                f"One seed alone would have chosen trial {first.number}, the first in the search."
            )
    return sentences
