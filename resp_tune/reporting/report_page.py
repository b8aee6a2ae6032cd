"""`report.html`: one self-contained page made from the files in a search's folder.

The page loads nothing: plotly.js stands in it, and a content policy forbids every other source and
every script but the two whose hashes it names.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from collections.abc import Mapping
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from resp_tune.common.paths import write_atomically
from resp_tune.reporting import (
    baseline_comparison,
    group_tables,
    parameter_plots,
    plots,
    published,
    replicate_table,
    winner_metrics,
)
from resp_tune.reporting.format import figure, metric_name, signed
from resp_tune.reporting.results import Results, items, mapping, number, read_results

REPORT = "report.html"
LINKS = {
    "view": "trials, best first, with columns",
    "trials": "trials, best first",
    "search": "the search and all it tried",
    "charts": "curves of the trials",
    "compare": "the best trials compared",
}


def render(folder: Path) -> Path:
    """Write `folder/report.html` from the result files in `folder` and return its path.

    Needs `summary.json`, else raises `UserError`; what else is missing is said in the page.
    """
    results = read_results(folder)
    path = folder / REPORT
    write_atomically(path, _page(results, folder).encode())
    return path


class _Missing(jinja2.ChainableUndefined):
    """What the files do not say is a dash in the page."""

    def __str__(self) -> str:
        return "–"


def _page(results: Results, folder: Path) -> str:
    plotly, script = get_plotlyjs(), _script()
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("resp_tune", "reporting"),
        autoescape=True,
        undefined=_Missing,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "figure": figure,
        "signed": signed,
        "short": _short,
        "sentence": _sentence,
        "share": _share,
    }
    return environment.get_template("page.html").render(
        **_context(results, folder),
        plotly=Markup(plotly),  # noqa: S704  # the library's own text
        script=Markup(script),  # noqa: S704  # this package's own text
        policy=f"default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; "
        f"script-src {_hash(plotly)} {_hash(script)}; base-uri 'none'; form-action 'none'",
    )


def _context(results: Results, folder: Path) -> dict[str, Any]:
    summary = results.summary
    metric, winner = str(summary.get("metric")), mapping(summary.get("winner"))
    data = mapping(summary.get("data"))
    provenance = mapping(results.config.get("provenance"))
    charts = {
        "history": plots.history(results.trials, results.epochs, metric),
        "curves": plots.curves(results.trials, results.epochs, metric, str(winner.get("number"))),
        "parallel": parameter_plots.parallel(results.trials, metric, str(winner.get("number"))),
        "slices": parameter_plots.slices(results.trials, metric),
    }
    return {
        **_judged(results),
        **_tracked(results),
        "summary": summary,
        "name": str(summary.get("name", folder.name)),
        "metric": metric_name(metric),
        "data": data,
        "synthetic": bool(data.get("synthetic") or provenance.get("synthetic")),
        "notes": [str(note) for note in items(data.get("notes"))],
        "gaps": results.gaps,
        "winner": winner,
        "params": mapping(winner.get("params")),
        "seeds": items(winner.get("seeds")),
        "leaks": mapping(summary.get("leaks")),
        "leaked_share": summary.get("leaked_recording_share"),
        "states": [(k, v) for k, v in mapping(summary.get("trials")).items() if number(v)],
        "seconds": {k: number(v) for k, v in mapping(summary.get("seconds")).items()},
        "charts": charts,
        "plots": _json(_plots(charts)),
        "trials": results.trials,
        "columns": plots.parameters(results.trials),
        "repeat": provenance.get("command"),
        "predict": _predict(folder / "winner"),
        "classes": [str(c) for c in items(summary.get("classes") or results.config.get("classes"))],
        "config": mapping(results.config.get("trial_config")),
        "front_end": mapping(results.config.get("front_end")),
        "versions": mapping(summary.get("versions")),
    }


def _judged(results: Results) -> dict[str, Any]:
    """What the winner is worth, and how far to believe it."""
    summary = results.summary
    metric, winner = str(summary.get("metric")), mapping(summary.get("winner"))
    test, candidates = winner.get("test"), replicate_table.candidates(summary)
    confusion = group_tables.confusion(results)
    classes = group_tables.class_rows(summary) or (confusion.per_class if confusion else ())
    return {
        "tested": isinstance(test, Mapping),
        "figures": winner_metrics.figures(summary),
        "price": winner_metrics.price(summary),
        "by_seed": bool(mapping(mapping(test).get("by_seed"))),
        "replicates": replicate_table.replicated(winner),
        "compared": metric_name(baseline_comparison.comparison_metric(summary)),
        "bars": baseline_comparison.comparison(summary),
        "forest": baseline_comparison.forest(summary),
        "verdict": baseline_comparison.verdict(summary),
        "majority": _majority(summary),
        "published": published.beside_published(results),
        "terms": published.terms(results),
        "candidates": candidates,
        "candidates_strip": replicate_table.strip_of(candidates, metric, winner),
        "candidates_told": replicate_table.told(candidates, metric, winner),
        "views": group_tables.views(results),
        "children": group_tables.children(summary),
        "confusion": confusion,
        "classes_strip": group_tables.classes_strip(classes),
        "few": group_tables.FEW,
        "readings": [r for r in items(summary.get("test_readings")) if isinstance(r, Mapping)],
    }


def _tracked(results: Results) -> dict[str, Any]:
    """Where the search stands in MLflow."""
    tracking = mapping(results.summary.get("mlflow"))
    links = mapping(tracking.get("links"))
    return {
        "tracking": tracking,
        "served": _is_web(tracking.get("tracking_uri")),
        "run_links": _run_links(results),
        "links": [(LINKS[k], v) for k, v in links.items() if k in LINKS and _is_web(v)],
    }


def _predict(winner: Path) -> str:
    return f"python -m resp_tune.predict --winner {shlex.quote(str(winner))} FILE…"


def _majority(summary: Mapping[str, Any]) -> list[tuple[str, float, str]]:
    """Accuracy of always naming the commonest class, where it is known, and the model's beside."""
    winner = mapping(summary.get("winner"))
    test = mapping(winner.get("test"))
    rows = []
    value = number(test.get("majority_accuracy"))
    if value is not None:
        rows.append(("the test side", value, figure(number(test.get("accuracy")))))
    value = number(mapping(summary.get("baselines")).get("majority_accuracy"))
    if value is not None:
        validation = number(mapping(winner.get("validation")).get("accuracy"))
        rows.append(("all data", value, f"{figure(validation)} on validation"))
    return rows


def _plots(charts: Mapping[str, Any]) -> dict[str, plots.Plot]:
    flat: list[plots.Chart] = []
    for found in charts.values():
        flat += found if isinstance(found, list) else [found] if found else []
    return {chart.id: chart.plot for chart in flat}


def _run_links(results: Results) -> dict[str, str]:
    """The MLflow page of each trial's run, by trial number."""
    tracking = mapping(results.summary.get("mlflow"))
    base, mark, _ = str(mapping(tracking.get("links")).get("trials", "")).partition("/#/")
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


def _script() -> str:
    text = package_files("resp_tune.reporting").joinpath("script.html").read_text("utf-8")
    return text.strip().removeprefix("<script>").removesuffix("</script>")


def _hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def _json(value: object) -> Markup:
    """JSON that can stand inside a script element whatever strings it holds."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704  # no character is left that could end the element


def _sentence(text: str) -> str:
    """With a capital first letter, the others as they are."""
    return text[:1].upper() + text[1:]


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def _short(value: object) -> str:
    """A value of a table: numbers with four digits that count, all else as it is."""
    text = "" if value is None else str(value)
    found = number(value)
    if found is None or text.lstrip("-").isdecimal():
        return text or "–"
    if found.is_integer() and abs(found) < 1e9:
        return f"{found:.0f}"
    return f"{found:.4g}"
