"""`audit.html`: the audit as one self-contained page, without scripts and without a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jinja2

from resp_tune.audit import rows
from resp_tune.reporting.format import figure
from resp_tune.training.metrics import CYCLE_CLASSES


def draw(found: Mapping[str, Any]) -> str:
    """The page of an audit; whatever comes from files is escaped by the template."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("resp_tune", "audit"),
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
            {"title": title, "columns": rows.columns_of(table), "rows": table, "most": _most(table)}
            for name, title in rows.TABLES.items()
            for table in [found["tables"][name]]
        ],
        leaks=rows.leak_rows(found["leaks"]),
        leak_reasons=rows.leak_reasons(found["leaks"]),
        baselines=rows.baseline_rows(found),
        baseline_reasons=rows.baseline_reasons(found),
        controlled=rows.CONTROLLED,
        model=model,
        model_rows=rows.model_rows(model) if model and model["test"] else [],
        cycle_line=rows.cycle_line,
        against_rows=rows.against_rows,
        span=rows.span,
        share=rows.share,
    )


def _most(table: Mapping[str, Mapping[str, Mapping[str, int]]]) -> int:
    return max(cell["patients"] for cells in table.values() for cell in cells.values())
