"""`audit.html`: the audit as one self-contained page, without scripts and without a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jinja2

from resp_tune.auditing import words
from resp_tune.learning.metrics import CYCLE_CLASSES
from resp_tune.reporting.wording import figure


def draw(found: Mapping[str, Any]) -> str:
    """The page of an audit; whatever comes from files is escaped by the template."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("resp_tune", "auditing"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["figure"] = figure
    model = found.get("model")
    return environment.get_template("audit.html").render(
        found=found,
        data=found["data"],
        counts=found["counts"],
        cycles=CYCLE_CLASSES,
        crossed=[
            {"title": title, "columns": words.columns_of(rows), "rows": rows, "most": _most(rows)}
            for name, title in words.TABLES.items()
            for rows in [found["tables"][name]]
        ],
        leaks=words.leak_rows(found["leaks"]),
        leak_reasons=words.leak_reasons(found["leaks"]),
        baselines=words.baseline_rows(found),
        baseline_reasons=words.baseline_reasons(found),
        controlled=words.CONTROLLED,
        model=model,
        model_rows=words.model_rows(model) if model and model["test"] else [],
        cycle_line=words.cycle_line,
        against_rows=words.against_rows,
        span=words.span,
        share=words.share,
    )


def _most(rows: Mapping[str, Mapping[str, Mapping[str, int]]]) -> int:
    return max(cell["patients"] for cells in rows.values() for cell in cells.values())
