"""Plot a search with Optuna's own figures, from its tables of trials and epochs.

The study is rebuilt in memory from `trials.csv` and `epochs.csv` instead of opened from `study.db`.
So a page can be made from any copy of a search's results, of an older release too; Optuna's check
of a database's version and its locks play no part; and a diverged trial, which the database holds
with the worst value of its metric, does not squeeze all others into one line. What is lost is the
space: an axis spans the values that were tried, and is logarithmic where they span decades.

Text from files is escaped here, because plotly.js reads a little HTML in labels.
"""

from __future__ import annotations

import html
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
import plotly.graph_objects as go
from optuna import visualization
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.importance import FanovaImportanceEvaluator
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from resp_tune.common.choices import METRIC_MODES, TRIAL_COLUMNS
from resp_tune.common.text import shorten
from resp_tune.reporting.format import metric_name, sentence
from resp_tune.reporting.results import Row, number

LOGARITHMIC = ("lr", "weight_decay")
DECADES = 100  # high / low from which an axis is logarithmic
MOST_CURVES, MOST_LINES, MOST_POINTS = 100, 150, 1000  # trials; more are only slower to draw
SLICES_A_ROW = 4
ENOUGH, STABLE = 20, 50  # finished trials, for importances to be shown, and to be relied on

INK, MUTED, GRID, ACCENT = "#1b2228", "#59656f", "#dde2e6", "#b4450b"
COLOURS = ("#1769aa", "#0b7a5c", "#8a3fa0", "#8a6a00", "#c0306a", "#3f6f8f", "#6b7680")


@dataclass(frozen=True)
class Chart:
    """A figure of plotly.js, its title, and what it shows in words for those who cannot see it."""

    id: str
    title: str
    text: str
    figure: Mapping[str, Any]
    height: int = 360  # pixels
    min_width: int = 0  # pixels; a narrower page scrolls
    wide: bool = True  # over both columns of the page


def parameters(trials: Sequence[Row]) -> list[str]:
    """Return the searched fields: the columns of `trials.csv` that are not fixed ones."""
    return [column for column in (trials[0] if trials else ()) if column not in TRIAL_COLUMNS]


def search_charts(
    trials: Sequence[Row], epochs: Sequence[Row], metric: str, winner: str
) -> list[Chart]:
    """Return the figures of a search, those that its tables have enough for."""
    finished = _best_first(trials, metric)
    found = [
        _history(trials, finished, metric),
        _learning_curves(trials, finished, epochs, metric, winner),
        _losses(epochs, winner),
        _importances(finished[:MOST_POINTS], metric),
        _parallel(finished[:MOST_LINES], metric),
        *_slices(trials, finished, metric),
    ]
    return [chart for chart in found if chart is not None]


def make_study(trials: Iterable[Row], metric: str, epochs: Sequence[Row] = ()) -> optuna.Study:
    """Return an in-memory study of `trials`, with the validation metric of each of `epochs`.

    Trials that diverged or failed are FAIL, those that were pruned PRUNED. A column whose every
    value is a number is numeric, any other one categorical.
    """
    rows = list(trials)
    values = _values_by_epoch(epochs, f"val_{metric}")
    distributions = {
        name: _distribution(name, [row[name] for row in rows if row[name]])
        for name in parameters(rows)
        if any(row[name] for row in rows)
    }
    previous = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(logging.WARNING)  # it announces each new study
    study = optuna.create_study(
        direction=StudyDirection.MINIMIZE if _less_is_better(metric) else StudyDirection.MAXIMIZE
    )
    optuna.logging.set_verbosity(previous)
    study.add_trials(_trial(row, distributions, values.get(row["number"], {})) for row in rows)
    return study


def _trial(
    row: Row, distributions: Mapping[str, BaseDistribution], values: dict[int, float]
) -> FrozenTrial:
    score = number(row["score"])
    state = {"finished": TrialState.COMPLETE, "pruned": TrialState.PRUNED}.get(row["state"])
    if state is None or (state == TrialState.COMPLETE and score is None):
        state = TrialState.FAIL
    given = {name: d for name, d in distributions.items() if row[name]}
    return create_trial(
        state=state,
        value=score if state == TrialState.COMPLETE else None,
        params={_label(n): _value(row[n], d) for n, d in given.items()},
        distributions={_label(n): d for n, d in given.items()},
        intermediate_values=values,
    )


def _distribution(name: str, cells: Sequence[str]) -> BaseDistribution:
    """Return a distribution that holds all `cells` of a column, of which there is at least one."""
    known = [value for cell in cells if (value := number(cell)) is not None]
    if len(known) < len(cells):
        return CategoricalDistribution(tuple(sorted({_label(cell) for cell in cells})))
    low, high = min(known), max(known)
    log = low > 0 and (name in LOGARITHMIC or high / low > DECADES)
    if all(cell.lstrip("-").isdecimal() for cell in cells):
        whole = [int(cell) for cell in cells]
        return IntDistribution(min(whole), max(whole), log=log)
    return FloatDistribution(low, high, log=log)


def _value(cell: str, distribution: BaseDistribution) -> str | float:
    if isinstance(distribution, CategoricalDistribution):
        return _label(cell)
    return int(cell) if isinstance(distribution, IntDistribution) else float(cell)


def _label(text: str) -> str:
    return html.escape(shorten(text, 24))


def _values_by_epoch(epochs: Sequence[Row], column: str) -> dict[str, dict[int, float]]:
    """Return the values of a column of `epochs.csv`, by trial and epoch."""
    found: dict[str, dict[int, float]] = {}
    for row in epochs:
        epoch, value = number(row["epoch"]), number(row.get(column))
        if epoch is not None and value is not None:
            found.setdefault(row["number"], {})[int(epoch)] = value
    return found


def _best_first(trials: Sequence[Row], metric: str) -> list[Row]:
    """Return the finished trials with a score, best first."""
    sign = 1 if METRIC_MODES.get(metric) == "min" else -1
    scored = [(number(row["score"]), row) for row in trials if row["state"] == "finished"]
    known = [(score, row) for score, row in scored if score is not None]
    return [row for _, row in sorted(known, key=lambda pair: sign * pair[0])]


def _history(trials: Sequence[Row], finished: Sequence[Row], metric: str) -> Chart | None:
    if not finished:
        return None
    name = metric_name(metric)
    figure = visualization.plot_optimization_history(
        make_study(trials, metric), target_name=_objective(metric)
    )
    figure.update_traces(line_color=ACCENT, line_shape="hv", selector={"mode": "lines"})
    # Optuna counts the trials of the study; the table's own numbers are what the page names.
    numbers = [number(row["number"]) for row in trials]
    figure.data = [trace for trace in figure.data if len(trace.x)]
    for trace in figure.data:
        trace.x = [numbers[x] for x in trace.x]
    return Chart(
        "history",
        "Score of each finished trial, in the order they were tried",
        f"{len(trials)} trials, {len(finished)} of them finished; the best {name} is "
        f"{number(finished[0]['score']):.4f}. The line is the best so far.",
        _plain(figure, x="trial", integer_x=True, legend=True),
    )


def _learning_curves(
    trials: Sequence[Row],
    finished: Sequence[Row],
    epochs: Sequence[Row],
    metric: str,
    winner: str,
) -> Chart | None:
    """Draw each trial's validation metric by epoch, pruned trials included."""
    best = {row["number"] for row in finished[: MOST_CURVES // 2]}
    rest = [row for row in trials if row["number"] not in best | {winner}]
    chosen = best | {winner} | {row["number"] for row in rest[-MOST_CURVES // 2 :]}
    rows = [row for row in trials if row["number"] in chosen]
    study = make_study(rows, metric, epochs)
    ended = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    if not any(trial.intermediate_values for trial in ended):
        return None
    figure = visualization.plot_intermediate_values(study)
    figure.update_traces(opacity=0.6, line_width=1.5, marker_size=4)
    for trace in figure.data:
        of_trial = rows[int(trace.name.removeprefix("Trial"))]["number"]
        trace.name = f"trial {_label(of_trial)}"
        if of_trial == winner:
            trace.update(opacity=1, line={"color": ACCENT, "width": 3.5})
    some = f" Of {len(trials)} trials, the best and the latest are shown." * (
        len(rows) < len(trials)
    )
    return Chart(
        "curves",
        "Learning curves" if len(figure.data) > 1 else "Learning curve",
        f"Validation {metric_name(metric)} after each epoch; the winner's line is thick, one that "
        f"ends early was pruned. A trial is scored at its last epoch, not at its best.{some}",
        _plain(figure, x="epoch", y=_objective(metric), integer_x=True),
        wide=False,
    )


def _losses(epochs: Sequence[Row], winner: str) -> Chart | None:
    """Draw the winner's two losses, which Optuna has no figure of."""
    figure = go.Figure()
    for column, name, colour in (
        ("train_loss", "training", COLOURS[0]),
        ("val_loss", "validation", ACCENT),
    ):
        points = _values_by_epoch(epochs, column).get(winner)
        if points:
            x, y = zip(*sorted(points.items()), strict=True)
            figure.add_scatter(x=x, y=y, name=name, mode="lines+markers", line_color=colour)
    if not figure.data:
        return None
    return Chart(
        "losses",
        "The winner's loss",
        f"Cross entropy of trial {winner} on the training and the validation split after each "
        "epoch. Training clips are balanced and augmented as its config says.",
        _plain(figure, x="epoch", y="loss", integer_x=True, legend=True),
        wide=False,
    )


def _importances(finished: Sequence[Row], metric: str) -> Chart | None:
    """Draw how much of the variation of the scores each parameter explains, by fANOVA.

    Optuna's default, PED-ANOVA, named the only parameter that mattered first in 11 of 30 noisy
    studies of 50 trials, fANOVA in 28 (in 26 of 30 with 20 trials). Parameters that not every
    trial has are left out by fANOVA.
    """
    if len(finished) < ENOUGH:
        return None
    study = make_study(finished, metric)
    try:
        figure = visualization.plot_param_importances(
            study, evaluator=FanovaImportanceEvaluator(seed=0), target_name=_objective(metric)
        )
    except (ValueError, RuntimeError):  # no parameter varied, or no score did
        return None
    figure.update_traces(marker_color=COLOURS[0])
    notes = ""
    if len(finished) < STABLE:
        notes += f" With fewer than {STABLE} the order is unstable: more trials may change it."
    if len(figure.data[0].y) < len(parameters(finished)):
        notes += " Parameters that not every trial has are left out."
    return Chart(
        "importances",
        "Importance of the parameters",
        f"Share of the variance of {metric_name(metric)} that each parameter explains, by fANOVA "
        f"(random forests) over {len(finished)} finished trials.{notes}",
        _plain(figure, x="share of the variance", y=""),
        height=120 + 28 * len(figure.data[0].y),
    )


def _parallel(finished: Sequence[Row], metric: str) -> Chart | None:
    fields = parameters(finished)
    if len(finished) < 2 or not fields:
        return None
    figure = visualization.plot_parallel_coordinate(
        make_study(reversed(finished), metric), target_name=_objective(metric)
    )
    figure.update_traces(opacity=0.8, line_width=1.8, selector={"mode": "lines"})
    for line in figure.select_traces({"mode": "lines"}):  # the lightest are invisible on white
        channels = re.findall(r"[\d.]+", line.line.color)
        line.line.color = f"rgb({', '.join(str(0.8 * float(c)) for c in channels)})"
    return Chart(
        "parallel",
        "Parameters of the finished trials",
        f"Each line is one of the {len(finished)} best finished trials; it runs from its "
        f"{metric_name(metric)} on the left through its parameters; the stronger its colour, the "
        "better. Learning rates and what else spans decades are drawn by logarithm.",
        _plain(figure, grid=False),
        height=420,
        min_width=75 * (len(fields) + 1),
    )


def _slices(trials: Sequence[Row], finished: Sequence[Row], metric: str) -> list[Chart]:
    """Draw the score against each parameter, a few parameters a figure."""
    scored = {row["number"] for row in finished}
    recent = [row for row in trials if row["number"] in scored][-MOST_POINTS:]
    if len(recent) < 2:
        return []
    study = make_study(recent, metric)
    names = sorted({name for trial in study.get_trials(deepcopy=False) for name in trial.params})
    charts = []
    for start in range(0, len(names), SLICES_A_ROW):
        chosen = names[start : start + SLICES_A_ROW]
        figure = visualization.plot_slice(study, params=chosen, target_name=_objective(metric))
        figure.update_layout(width=None)
        listed = ", ".join(html.unescape(name) for name in chosen)
        charts.append(
            Chart(
                f"slice{start // SLICES_A_ROW}",
                f"{sentence(metric_name(metric))} against {listed}",
                "Finished trials only, later ones in a stronger colour. A sampler tries more where "
                "it has found good values, so a crowd is not evidence by itself.",
                _plain(figure),
                height=260,
                min_width=180 * len(chosen),
            )
        )
    return charts


def _less_is_better(metric: str) -> bool:
    return METRIC_MODES.get(metric) == "min"


def _objective(metric: str) -> str:
    return f"validation {_label(metric_name(metric))}"


def _plain(
    figure: go.Figure,
    *,
    x: str | None = None,
    y: str | None = None,
    integer_x: bool = False,
    legend: bool = False,
    grid: bool = True,
) -> dict[str, Any]:
    """Return `figure` in the page's layout as plain values; `x` and `y` are titles of its axes."""
    figure.update_layout(
        title=None,
        margin={"l": 56, "r": 16, "t": 24, "b": 48},
        showlegend=legend,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0},
        colorway=COLOURS,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13, "color": INK},
        hoverlabel={"bgcolor": "white", "font": {"color": INK}, "align": "left"},
        hovermode="closest",
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": MUTED, "activecolor": INK},
    )
    axis = {"gridcolor": GRID, "zerolinecolor": GRID, "linecolor": GRID, "automargin": True}
    figure.update_xaxes(**axis, title_font={"size": 13, "color": MUTED}, showgrid=grid)
    figure.update_yaxes(**axis, title_font={"size": 13, "color": MUTED}, showgrid=grid)
    if x is not None:
        figure.update_xaxes(title_text=x)
    if y is not None:
        figure.update_yaxes(title_text=y)
    if integer_x and max(max(trace.x, default=0) for trace in figure.data) <= 10:
        figure.update_xaxes(dtick=1)
    plain: dict[str, Any] = json.loads(figure.to_json())
    plain["layout"].pop("template", None)
    return {"data": plain["data"], "layout": plain["layout"]}
