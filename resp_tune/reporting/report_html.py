"""`report.html`: one self-contained page made from the files in a search's folder.

Any of them but the summary may be missing or damaged.
"""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup
from plotly.offline import get_plotlyjs

from resp_tune.common.choices import LINK_TEXTS
from resp_tune.common.paths import write_atomically
from resp_tune.common.text import shorten
from resp_tune.errors import RunError, UserError
from resp_tune.reporting import baseline_comparison, group_tables, replicate_table, search_plots
from resp_tune.reporting.format import figure, metric_name
from resp_tune.reporting.json_values import Row, items, mapping, number, objective, value_at
from resp_tune.reporting.nested_tables import nested_tables
from resp_tune.reporting.page_templates import render_page

REPORT = "report.html"


@dataclass(frozen=True)
class Results:
    """The files of a search's folder. Tables are rows of text by column, empty if missing.

    `gaps` has a sentence for every file that is missing or damaged. `pooled`: the test predictions
    of all outer folds of a nested search.
    """

    summary: Mapping[str, Any]
    trials: Sequence[Row]
    epochs: Sequence[Row]
    predictions: Sequence[Row]
    config: Mapping[str, Any]
    gaps: tuple[str, ...]
    pooled: Sequence[Row] = ()


def read_results(folder: Path) -> Results:
    """Read the results in `folder`; raises `UserError` without a readable summary."""
    summary = _summary(folder / "summary.json")
    gaps: list[str] = []
    trials = _table(folder / "trials.csv", ("number", "state", "score"), gaps)
    epochs = _table(folder / "epochs.csv", ("number", "epoch"), gaps)
    winner = folder / "winner"
    needed = ("side", "label", "predicted")
    predictions = _table(winner / "predictions.csv", needed, gaps)
    pooled: Sequence[Row] = ()
    if mapping(summary, "pooled"):
        pooled = _table(folder / "predictions.csv", needed, gaps)
    config: Mapping[str, Any] = {}
    try:
        config = _object(winner / "config.json")
    except (OSError, ValueError) as error:
        gaps.append(_gap("winner/config.json", error))
    return Results(summary, trials, epochs, predictions, config, tuple(gaps), pooled)


def render(
    folder: Path, page: Path | None = None, drawn: list[search_plots.Chart] | None = None
) -> Path:
    """Write the page of the result files in `folder` to `folder/report.html`, or to `page`.

    Returns the path of the page. `drawn` takes the figures, or holds those of the same tables.

    Raises `UserError` without `summary.json`; the page names whatever else is missing. Raises
    `RunError` after it was written if it lacks a figure that could not be drawn.
    """
    results, undrawn = read_results(folder), list[str]()
    charts = drawn or _charts(results, undrawn)
    if drawn is not None and not undrawn:
        drawn[:] = charts
    script = package_files("resp_tune.reporting").joinpath("script.js").read_text("utf-8")
    scripts = (get_plotlyjs(), script)
    context = {
        **_context(results, folder),
        "gaps": [*results.gaps, *undrawn],
        "charts": charts,
        "plots": _json({chart.id: chart.figure for chart in charts}),
    }
    page = page or folder / REPORT
    text = render_page("reporting", "report.html", scripts, **context)
    write_atomically(page, text.encode())
    if undrawn:
        raise RunError(f"'{page}' is incomplete. {' '.join(undrawn)}")
    return page


def _charts(results: Results, undrawn: list[str]) -> list[search_plots.Chart]:
    """Return the figures of the search; `undrawn` gets a sentence for each that fails."""
    metric = objective(results.summary)
    trial = str(mapping(results.summary, "winner").get("number"))
    try:
        return search_plots.search_charts(results.trials, results.epochs, metric, trial, undrawn)
    except Exception as error:  # tables that Optuna refuses; the rest of the page does not need it
        undrawn.append(f"The figures could not be drawn ({shorten(str(error), 200)}).")
        return []


def _context(results: Results, folder: Path) -> dict[str, Any]:
    summary = results.summary
    metric, winner = objective(summary), mapping(summary, "winner")
    data, provenance = mapping(summary, "data"), mapping(results.config, "provenance")
    bundle, tracking = shlex.quote(str(folder / "winner")), mapping(summary, "mlflow")
    links = [(LINK_TEXTS.get(k), v) for k, v in mapping(tracking, "links").items() if _is_web(v)]
    return {
        **_winner_context(results),
        "nested": nested_tables(summary, results.pooled),
        "summary": summary,
        "name": str(summary.get("name", folder.name)),
        "outer_fold": number(summary, "outer_fold"),
        "metric": metric_name(metric),
        "data": data,
        "synthetic": bool(data.get("synthetic") or provenance.get("synthetic")),
        "notes": [str(note) for note in items(data, "notes")],
        "winner": winner,
        "params": mapping(winner, "params"),
        "encoder": mapping(winner, "encoder"),
        "seeds": items(winner, "seeds"),
        "leaks": mapping(summary, "leaks"),
        "leaked_share": summary.get("leaked_recording_share"),
        "states": [(k, v) for k, v in mapping(summary, "trials").items() if number(v)],
        "seconds": {k.replace("_", " "): number(v) for k, v in mapping(summary, "seconds").items()},
        "most_drawn": search_plots.MOST,
        "trials": results.trials,
        "columns": search_plots.parameters(results.trials),
        "repeat": provenance.get("command"),
        "predict": f"python -m resp_tune.predict --winner {bundle} FILE…",
        "classes": [str(c) for c in items(summary.get("classes") or results.config.get("classes"))],
        "tracking": tracking,
        "served": _is_web(tracking.get("tracking_uri")),
        "run_links": _run_links(results),
        "links": [(text, address) for text, address in links if text],
        "config": mapping(results.config, "trial_config"),
        "versions": mapping(summary, "versions"),
    }


def _winner_context(results: Results) -> dict[str, Any]:
    """Return what the page says of the winner's metrics and their uncertainty."""
    summary = results.summary
    metric, winner = objective(summary), mapping(summary, "winner")
    candidates = replicate_table.candidates(summary)
    confusion = group_tables.confusion(summary, results.predictions)
    classes = group_tables.class_rows(summary) or (confusion.per_class if confusion else ())
    return {
        "tested": isinstance(winner.get("test"), Mapping),
        "metrics": baseline_comparison.metric_rows(summary),
        "baselines": [
            baseline_comparison.BASELINES[key]
            for key in baseline_comparison.known_baselines(summary)
        ],
        "levels": group_tables.level_rows(summary),
        "price": replicate_table.price_of_searching(summary),
        "by_seed": bool(mapping(winner, "test", "by_seed")),
        "replicates": replicate_table.winner_replicates(winner),
        "ensemble": [str(value_at(m, "number")) for m in items(winner, "ensemble")],
        "compared": baseline_comparison.comparison_table(summary),
        "forest": baseline_comparison.forest_plot(summary),
        "verdict": baseline_comparison.verdict(summary),
        "majority": _majority(summary),
        "published": baseline_comparison.published_table(summary, results.config),
        "operating_point": _operating_point(winner),
        "candidates": candidates,
        "candidates_table": replicate_table.candidate_table(candidates, metric, winner),
        "candidates_text": replicate_table.explain_candidates(candidates, metric, winner),
        "subgroups": group_tables.subgroups(summary, results.predictions),
        "children": group_tables.children(summary),
        "confusion": confusion,
        "class_table": group_tables.class_table(classes),
        "few": group_tables.FEW,
        "accesses": [r for r in items(summary, "test_readings") if isinstance(r, Mapping)],
    }


def _operating_point(winner: Mapping[str, Any]) -> str | None:
    """Return a sentence on the operating point of a winner that has one."""
    point = mapping(winner, "operating_point")
    known = [(name, value) for name in point if (value := number(point, name)) is not None]
    if not known:
        return None
    name, value = known[0]
    without = number(winner, "test", "without_operating_point", "icbhi_score")
    before = "" if without is None else f" Without it the test score is {figure(without)}."
    return (
        f"The operating point was chosen on the validation split: the log-probability of {name} "
        f"is changed by {value:+.2f}.{before}"
    )


def _majority(summary: Mapping[str, Any]) -> list[tuple[str, float, str]]:
    """Return the accuracy of always predicting the commonest class, beside the winner's."""
    winner = mapping(summary, "winner")
    tested, validated = (figure(number(winner, s, "accuracy")) for s in ("test", "validation"))
    everywhere = number(summary, "baselines", "majority_accuracy")
    rows = [
        ("the test split", number(winner, "test", "majority_accuracy"), tested),
        ("all data", everywhere, f"{validated} on validation"),
    ]
    return [(data, value, accuracy) for data, value, accuracy in rows if value is not None]


def _run_links(results: Results) -> dict[str, str]:
    """Return the address of each trial's run in MLflow's UI, by trial number."""
    tracking = mapping(results.summary, "mlflow")
    base, mark, _ = str(mapping(tracking, "links").get("trials", "")).partition("/#/")
    if not mark or not _is_web(base):
        return {}
    runs = f"{base}/#/experiments/{quote(str(tracking.get('experiment_id')), safe='')}/runs/"
    return {
        row["number"]: runs + quote(row["mlflow_run_id"], safe="")
        for row in results.trials
        if row.get("mlflow_run_id")
    }


def _is_web(address: object) -> bool:
    return isinstance(address, str) and address.startswith(("http://", "https://"))


def _json(value: object) -> Markup:
    """Return JSON that is safe inside a script element, whatever strings it holds."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704  # no character is left that could end the element


def _summary(path: Path) -> Mapping[str, Any]:
    try:
        return _object(path)
    except FileNotFoundError:
        raise UserError(
            f"'{path.parent}' has no summary.json: the search has not finished; rerun its "
            "command to resume it"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(
            f"'{path}' cannot be read ({error}): rerun the search's command, which writes it again"
        ) from error


def _object(path: Path) -> Mapping[str, Any]:
    content = json.loads(path.read_bytes())
    if not isinstance(content, dict):
        raise ValueError("it is not a JSON object")
    return content


def _table(path: Path, needed: Sequence[str], gaps: list[str]) -> Sequence[Row]:
    name = f"{path.parent.name}/{path.name}" if path.parent.name == "winner" else path.name
    try:
        with path.open(encoding="utf-8", newline="") as file:
            # strict: a stray quote would otherwise swallow the rest of the file in silence.
            reader = csv.DictReader(file, strict=True)
            rows = list(reader)
        missing = [column for column in needed if column not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(f"it has no column {', '.join(missing)}")
        if any(None in row or None in row.values() for row in rows):
            raise ValueError("it has rows of another length than its header")
    except (OSError, ValueError, csv.Error) as error:
        gaps.append(_gap(name, error))
        return ()
    return rows


def _gap(name: str, error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"{name} is missing: what is made from it is left out."
    reason = error.strerror if isinstance(error, OSError) else error
    return f"{name} cannot be read ({reason}): what is made from it is left out."
