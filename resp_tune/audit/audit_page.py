"""`audit.html`: the audit as one self-contained page without scripts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from resp_tune.audit.sections import audit_sections
from resp_tune.reporting.html_page import render_page


def render_audit(found: Mapping[str, Any]) -> str:
    """Return the page of an audit."""
    return render_page("audit", "audit.html", **found, sections=audit_sections(found))
