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
import re
from collections.abc import Callable, Mapping, Sequence
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
from optuna.trial import FrozenTrial, TrialState, create_trial

from resp_tune.common.choices import METRIC_MODES, TRIAL_COLUMNS
from resp_tune.common.text import shorten
from resp_tune.reporting.format import metric_name, sentence
from resp_tune.reporting.json_values import Row, number

optuna.logging.set_verbosity(optuna.logging.WARNING)  # it announces each new study

Column = tuple[BaseDistribution, Callable[[str], Any]]  # what its cells are drawn from and read by
LOGARITHMIC = ("lr", "weight_decay")
DECADES = 100  # high / low from which an axis is logarithmic
MOST_BEST, MOST = 100, 400  # finished trials, best first, and trials in all that are drawn
SLICES_A_ROW = 4
ENOUGH, STABLE = 20, 50  # finished trials, for importances to be shown, and to be relied on

ACCENT, BLUE = "#b4450b", "#1769aa"  # all else of the look is in `script.js`


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
    trials: Sequence[Row], epochs: Sequence[Row], metric: str, winner: str, gaps: list[str]
) -> list[Chart]:
    """Return the figures of a search, those that its tables have enough for.

    Of a large search the best trials and the latest are drawn. A figure that cannot be drawn gets a
    sentence in `gaps`.
    """
    best = {row["number"] for row in _best_first(trials, metric)[:MOST_BEST]} | {winner}
    rest = [row for row in trials if row["number"] not in best]
    latest = {row["number"] for row in rest[-(MOST - MOST_BEST) :]}
    rows = [row for row in trials if row["number"] in best | latest]
    study = make_study(rows, metric, epochs)
    finished = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    searched, score = len(parameters(rows)), f"validation {_label(metric_name(metric))}"
    figures: dict[str, Callable[[], list[Chart]]] = {}
    if finished:
        figures["the scores"] = lambda: [_history(study, rows, score)]
    if any(t.intermediate_values for t in study.trials if t.state != TrialState.FAIL):
        figures["the learning curves"] = lambda: [_learning_curves(study, rows, score, winner)]
    figures["the losses"] = lambda: _losses(epochs, winner)
    if len(finished) >= ENOUGH:
        figures["importances"] = lambda: _importances(study, len(finished), searched, score)
    if len(finished) > 1 and searched:
        figures["the parameters"] = lambda: [_parallel(study, score)]
        figures["the score by parameter"] = lambda: _slices(study, score)
    charts = []
    for name, draw in figures.items():
        try:
            charts += draw()
        except Exception as error:  # of Optuna or plotly; the other figures do not need this one
            gaps.append(f"The figure of {name} could not be drawn ({shorten(str(error), 200)}).")
    return charts


def make_study(rows: Sequence[Row], metric: str, epochs: Sequence[Row] = ()) -> optuna.Study:
    """Return an in-memory study of trials, with the validation metric of each of `epochs`.

    Trials that diverged or failed are FAIL, those that were pruned PRUNED. A column whose every
    value is a number is numeric, any other one categorical.
    """
    values = _values_by_epoch(epochs, f"val_{metric}")
    columns = {
        name: _column(name, cells)
        for name in parameters(rows)
        if (cells := [row[name] for row in rows if row[name]])
    }
    less = METRIC_MODES.get(metric) == "min"
    study = optuna.create_study(direction="minimize" if less else "maximize")
    study.add_trials(_trial(row, columns, values.get(row["number"], {})) for row in rows)
    return study


def _trial(row: Row, columns: Mapping[str, Column], values: dict[int, float]) -> FrozenTrial:
    score = number(row["score"])
    state = {"finished": TrialState.COMPLETE, "pruned": TrialState.PRUNED}.get(row["state"])
    if state is None or (state == TrialState.COMPLETE and score is None):
        state = TrialState.FAIL
    own = {name: column for name, column in columns.items() if row[name]}
    return create_trial(
        state=state,
        value=score if state == TrialState.COMPLETE else None,
        params={_label(name): read(row[name]) for name, (_, read) in own.items()},
        distributions={_label(name): distribution for name, (distribution, _) in own.items()},
        intermediate_values=values,
    )


def _column(name: str, cells: Sequence[str]) -> Column:
    """Return a distribution that holds all `cells`, of which there is one at least."""
    known = [value for cell in cells if (value := number(cell)) is not None]
    if len(known) < len(cells):
        return CategoricalDistribution(tuple(sorted({_label(cell) for cell in cells}))), _label
    low, high = min(known), max(known)
    log = low > 0 and (name in LOGARITHMIC or high / low > DECADES)
    if all(cell.lstrip("-").isdecimal() for cell in cells):
        whole = [int(cell) for cell in cells]
        return IntDistribution(min(whole), max(whole), log=log), int
    return FloatDistribution(low, high, log=log), float


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
    finished = (row for row in trials if row["state"] == "finished")
    scored = [row for row in finished if number(row["score"]) is not None]
    return sorted(scored, key=lambda row: sign * float(row["score"]))


def _history(study: optuna.Study, rows: Sequence[Row], score: str) -> Chart:
    figure = visualization.plot_optimization_history(study, target_name=score)
    figure.update_traces(line_color=ACCENT, line_shape="hv", selector={"mode": "lines"})
    numbers = [number(row["number"]) for row in rows]  # Optuna counts from 0
    figure.data = [trace for trace in figure.data if len(trace.x)]
    for trace in figure.data:
        trace.x = [numbers[x] for x in trace.x]
    return Chart(
        "history",
        "Score of each finished trial, in the order they were tried",
        f"The best {score} is {study.best_value:.4f}. The line is the best so far.",
        _plain(figure, x="trial"),
    )


def _learning_curves(study: optuna.Study, rows: Sequence[Row], score: str, winner: str) -> Chart:
    """Draw each trial's validation metric by epoch, pruned trials included."""
    figure = visualization.plot_intermediate_values(study)
    figure.update_traces(opacity=0.6, line_width=1.5, marker_size=4)
    for trace in figure.data:
        of_trial = rows[int(trace.name.removeprefix("Trial"))]["number"]
        trace.name = f"trial {_label(of_trial)}"
        if of_trial == winner:
            trace.update(opacity=1, line={"color": ACCENT, "width": 3.5})
    return Chart(
        "curves",
        "Learning curves" if len(figure.data) > 1 else "Learning curve",
        f"{sentence(score)} after each epoch; the winner's line is thick, one that ends early was "
        "pruned. A trial is scored at its last epoch, not at its best.",
        _plain(figure, x="epoch", y=score),
        wide=False,
    )


def _losses(epochs: Sequence[Row], winner: str) -> list[Chart]:
    """Draw the winner's two losses, which Optuna has no figure of."""
    figure = go.Figure()
    for column, name, colour in (
        ("train_loss", "training", BLUE),
        ("val_loss", "validation", ACCENT),
    ):
        if points := _values_by_epoch(epochs, column).get(winner):
            x, y = zip(*sorted(points.items()), strict=True)
            figure.add_scatter(x=x, y=y, name=name, mode="lines+markers", line_color=colour)
    if not figure.data:
        return []
    text = (
        f"Cross entropy of trial {winner} on the training and the validation split after each "
        "epoch. Training clips are balanced and augmented as its config says."
    )
    plain = _plain(figure, x="epoch", y="loss")
    return [Chart("losses", "The winner's loss", text, plain, wide=False)]


def _importances(study: optuna.Study, finished: int, searched: int, score: str) -> list[Chart]:
    """Draw how much of the variance of the scores each parameter explains, by fANOVA.

    Optuna's default, PED-ANOVA, named the only parameter that mattered first in 11 of 30 noisy
    studies of 50 trials, fANOVA in 28 (in 26 of 30 with 20 trials). Parameters that not every
    trial has are left out by fANOVA.
    """
    from optuna.importance import FanovaImportanceEvaluator  # imports scikit-learn's forests

    try:
        figure = visualization.plot_param_importances(
            study, evaluator=FanovaImportanceEvaluator(seed=0), target_name=score
        )
    except (ValueError, RuntimeError):  # no parameter varied, or no score did
        return []
    figure.update_traces(marker_color=BLUE)
    text = (
        f"Share of the variance of {score} that each parameter explains, by fANOVA (random "
        f"forests) over {finished} finished trials."
    )
    if finished < STABLE:
        text += f" With fewer than {STABLE} the order is unstable: more trials may change it."
    if len(figure.data[0].y) < searched:
        text += " Parameters that not every trial has are left out."
    plain = _plain(figure, x="share of the variance", y="")
    height = 120 + 28 * len(figure.data[0].y)
    return [Chart("importances", "Importance of the parameters", text, plain, height)]


def _parallel(study: optuna.Study, score: str) -> Chart:
    figure = visualization.plot_parallel_coordinate(study, target_name=score)
    figure.update_traces(opacity=0.8, line_width=1.8, selector={"mode": "lines"})
    for line in figure.select_traces({"mode": "lines"}):  # the lightest are invisible on white
        channels = re.findall(r"[\d.]+", line.line.color)
        line.line.color = f"rgb({', '.join(str(0.8 * float(c)) for c in channels)})"
    return Chart(
        "parallel",
        "Parameters of the finished trials",
        f"Each line is a trial; it runs from its {score} on the left through its parameters; the "
        "stronger its colour, the better. What spans decades is drawn by logarithm.",
        _plain(figure),
        height=420,
        min_width=75 * len(figure.layout.xaxis.tickvals),
    )


def _slices(study: optuna.Study, score: str) -> list[Chart]:
    """Draw the score against each parameter, a few parameters a figure."""
    names = sorted({name for trial in study.get_trials(deepcopy=False) for name in trial.params})
    charts = []
    for start in range(0, len(names), SLICES_A_ROW):
        chosen = names[start : start + SLICES_A_ROW]
        figure = visualization.plot_slice(study, params=chosen, target_name=score)
        charts.append(
            Chart(
                f"slice{start // SLICES_A_ROW}",
                f"Score against {', '.join(html.unescape(name) for name in chosen)}",
                "Finished trials only, later ones in a stronger colour. A sampler tries more where "
                "it has found good values, so a crowd is not evidence by itself.",
                _plain(figure, width=None),
                height=260,
                min_width=180 * len(chosen),
            )
        )
    return charts


def _plain(
    figure: go.Figure, x: str | None = None, y: str | None = None, **layout: Any
) -> dict[str, Any]:
    """Return `figure` as plain values, without a template; `x` and `y` are titles of its axes."""
    layout = {"title": None, "plot_bgcolor": "rgba(0,0,0,0)", "template": None, **layout}
    titles = {"xaxis": x, "yaxis": y}
    layout |= {axis: {"title": {"text": text}} for axis, text in titles.items() if text is not None}
    # A table that was edited by hand may have text for a number.
    if x in ("trial", "epoch") and max((v or 0 for t in figure.data for v in t.x), default=0) <= 10:
        layout["xaxis"]["dtick"] = 1  # no ticks between whole numbers
    figure.update_layout(layout)
    plain: dict[str, Any] = json.loads(figure.to_json())
    return plain
