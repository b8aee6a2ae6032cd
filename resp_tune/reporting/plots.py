"""Figures for plotly.js as plain values: `{"data": […], "layout": {…}}`.

Colours are written `var(--name)` and put in by the page, which knows whether it is dark. Text from
files is escaped here, because plotly.js reads a little HTML in labels.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from resp_tune.reporting.format import LOWER_IS_BETTER, metric_name
from resp_tune.reporting.results import Row, number

FIXED = ("number", "state", "score", "epochs", "seconds", "seed", "mlflow_run_id")
STATES = {
    "finished": ("var(--finished)", "circle"),
    "pruned": ("var(--pruned)", "diamond-open"),
    "diverged": ("var(--diverged)", "x"),
    "failed": ("var(--failed)", "cross-open"),
}
CURVES = 8

Plot = dict[str, Any]


@dataclass(frozen=True)
class Chart:
    """A figure, what it is called, and what it shows in words for those who cannot see it."""

    id: str
    title: str
    text: str
    plot: Plot
    height: int = 360  # pixels
    least_width: int = 0  # pixels; a narrower page scrolls


def shown(text: object, length: int = 60) -> str:
    """File-derived text for a label, short and without markup."""
    plain = str(text)
    return html.escape(plain if len(plain) <= length else plain[: length - 1] + "…")


def parameters(trials: Sequence[Row]) -> list[str]:
    """The searched fields: the columns that are not fixed ones."""
    return [column for column in (trials[0] if trials else ()) if column not in FIXED]


def history(trials: Sequence[Row], epochs: Sequence[Row], metric: str) -> Chart | None:
    """Score by trial with the best so far; stopped trials stand at their last validation value."""
    last = {row["number"]: number(row.get(f"val_{metric}")) for row in epochs}
    points = []
    for row in trials:
        score = number(row["score"])
        value = last.get(row["number"]) if score is None else score
        points.append((number(row["number"]), row["state"], value, row))
    drawn = [p for p in points if p[2] is not None and p[1] != "diverged"]
    if not drawn:
        return None
    better = min if metric in LOWER_IS_BETTER else max
    worst = (max if better is min else min)(p[2] for p in drawn if p[2] is not None)
    data: list[Plot] = []
    finished = [(x, v) for x, state, v, _ in points if state == "finished" and v is not None]
    if finished:
        best = list(accumulate((v for _, v in finished), better))
        data.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": "best so far",
                "x": [x for x, _ in finished],
                "y": best,
                "line": {"shape": "hv", "color": "var(--accent)", "width": 2},
                "hovertemplate": "best so far %{y:.4f}<extra></extra>",
            }
        )
    for state, (colour, symbol) in STATES.items():
        mine = [p for p in points if p[1] == state]
        if mine:
            data.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "name": state,
                    "x": [p[0] for p in mine],
                    # What has no value of its own stands at the lower edge.
                    "y": [worst if p[2] is None or state == "diverged" else p[2] for p in mine],
                    "text": [hover(row) for *_, row in mine],
                    "hovertemplate": "%{text}<extra></extra>",
                    "marker": {"color": colour, "symbol": symbol, "size": 9},
                }
            )
    top = better(v for _, v in finished) if finished else None
    return Chart(
        "history",
        "Score of each trial, in the order they were tried",
        f"{len(trials)} trials, {len(finished)} of them finished"
        + ("" if top is None else f"; the best {metric_name(metric)} is {top:.4f}")
        + ". A trial that was stopped stands at its last validation value; one that diverged or"
        " failed stands at the worst value shown.",
        {
            "data": data,
            "layout": _counted("trial", f"validation {metric_name(metric)}", len(trials)),
        },
    )


def curves(trials: Sequence[Row], epochs: Sequence[Row], metric: str, winner: str) -> list[Chart]:
    """Validation metric by epoch of the best trials, and the winner's two losses."""
    best_first = [row["number"] for row in ranked(trials, metric)]
    chosen = [winner, *(n for n in best_first if n != winner)][:CURVES]
    by_trial: dict[str, list[Row]] = {}
    for row in epochs:
        by_trial.setdefault(row["number"], []).append(row)
    lines: list[Plot] = []
    for name in chosen:
        line = _line(by_trial.get(name, ()), f"val_{metric}", f"trial {shown(name)}")
        if line:
            best = name == winner
            style = {"width": 3 if best else 1.5, "color": f"var(--series-{len(lines) + 1})"}
            lines.append({**line, "line": style})
    found = []
    if lines:
        found.append(
            Chart(
                "curves",
                f"Learning curves of the best {len(lines)} trials"
                if len(lines) > 1
                else "Learning curve",
                f"Validation {metric_name(metric)} after each epoch; the winner's line is thick."
                " A trial is scored at its last epoch, whatever its best one was.",
                {
                    "data": lines,
                    "layout": _counted("epoch", f"validation {metric_name(metric)}", _most(lines)),
                },
            )
        )
    losses = []
    for column, label, colour in (
        ("train_loss", "training", "var(--series-2)"),
        ("val_loss", "validation", "var(--series-1)"),
    ):
        line = _line(by_trial.get(winner, ()), column, label)
        if line:
            losses.append({**line, "line": {"width": 2, "color": colour}})
    if losses:
        found.append(
            Chart(
                "losses",
                "The winner's loss",
                f"Cross entropy of trial {winner} on both sides after each epoch. Training draws"
                " classes evenly and is augmented, validation is neither.",
                {"data": losses, "layout": _counted("epoch", "loss", _most(losses))},
            )
        )
    return found


def ranked(trials: Sequence[Row], metric: str) -> list[Row]:
    """Finished trials with a score, best first."""
    sign = 1 if metric in LOWER_IS_BETTER else -1
    scored = [(number(row["score"]), row) for row in trials if row["state"] == "finished"]
    kept = [(score, row) for score, row in scored if score is not None]
    return [row for _, row in sorted(kept, key=lambda pair: sign * pair[0])]


def _line(rows: Sequence[Row], column: str, name: str) -> Plot | None:
    points = [(number(r["epoch"]), number(r.get(column))) for r in rows]
    kept = sorted((x, y) for x, y in points if x is not None and y is not None)
    if not kept:
        return None
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": [x for x, _ in kept],
        "y": [y for _, y in kept],
        "marker": {"size": 4},
        "hovertemplate": "epoch %{x}: %{y:.4f}",
    }


def _most(lines: Sequence[Plot]) -> float:
    return max(float(line["x"][-1]) for line in lines)


def hover(row: Mapping[str, str]) -> str:
    """What is said of a trial under the pointer."""
    score = number(row["score"])
    lines = [f"<b>trial {shown(row['number'])}</b>, {shown(row['state'])}"]
    if score is not None:
        lines.append(f"score {score:.4f}")
    for name, cell in row.items():
        if name not in FIXED:
            value = number(cell)
            lines.append(f"{shown(name)} {shown(cell) if value is None else f'{value:.4g}'}")
    return "<br>".join(lines)


def _counted(x: str, y: str, most: float) -> Plot:
    """A layout whose x counts something, up to `most`: no ticks between whole numbers."""
    layout = layout_of(x, y)
    if most <= 10:
        layout["xaxis"]["dtick"] = 1
    return layout


def layout_of(x: str, y: str) -> Plot:
    """The layout of all figures, with titles of both axes."""
    small = {"size": 13, "color": "var(--muted)"}
    axis = {"gridcolor": "var(--line)", "zerolinecolor": "var(--line)", "linecolor": "var(--line)"}
    return {
        "xaxis": {"title": {"text": x, "font": small}, "automargin": True, **axis},
        "yaxis": {"title": {"text": y, "font": small}, "automargin": True, **axis},
        "margin": {"l": 56, "r": 16, "t": 12, "b": 48},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": "var(--text)"},
        "hoverlabel": {"bgcolor": "var(--card)", "font": {"color": "var(--text)"}, "align": "left"},
        "hovermode": "closest",
        "modebar": {
            "bgcolor": "rgba(0,0,0,0)",
            "color": "var(--muted)",
            "activecolor": "var(--text)",
        },
    }
