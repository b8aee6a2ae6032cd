"""`audit.html`: the audit as one self-contained page without scripts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from resp_tune.audit import rows
from resp_tune.reporting.html_page import render_page
from resp_tune.training.metrics import CYCLE_CLASSES


def render_audit(found: Mapping[str, Any]) -> str:
    """Return the page of an audit."""
    context: dict[str, Any] = {
        "found": found,
        "data": found["data"],
        "counts": found["counts"],
        "cycles": CYCLE_CLASSES,
        "cycle_rows": rows.cycle_rows(found["counts"]),
        "crossed": [
            {
                "title": title,
                "columns": rows.column_names(table),
                "rows": table,
                "most": max(cell["patients"] for row in table.values() for cell in row.values()),
            }
            for name, title in rows.TABLES.items()
            for table in [found["tables"][name]]
        ],
        "leaks": rows.leak_rows(found["leaks"]),
        "leak_reasons": rows.leak_reasons(found["leaks"]),
        "baselines": rows.baseline_rows(found),
        "baseline_reasons": rows.baseline_reasons(found),
        "children": rows.CONTROLLED,
        "shortcuts": rows.shortcut_rows(found["shortcuts"]),
        "share": rows.size,
        "model": found.get("model"),
    }
    if context["model"] and (test := context["model"]["test"]):
        context |= {
            "model_rows": rows.model_rows(context["model"]),
            "cycle_metrics": rows.cycle_metrics(test["by_clip"]),
            "baseline_differences": rows.baseline_difference_rows(test["against"]),
            "class_rows": rows.class_rows(test["per_class"]),
            "controlled": rows.controlled_line(test["controlled"]),
        }
    return render_page("audit", "audit.html", **context)
