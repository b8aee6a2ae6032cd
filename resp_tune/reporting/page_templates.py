"""Render self-contained HTML pages from templates of one design.

A page loads nothing: what it needs is in it, and its content policy forbids every other source and
every script but those whose hashes it names. All values are escaped but for `Markup`.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from typing import Any

import jinja2
from markupsafe import Markup

from resp_tune.reporting.format import figure, percent, shortened, signed


def render_page(package: str, template: str, scripts: Sequence[str] = (), **context: Any) -> str:
    """Return the page that `template` of the package `resp_tune.<package>` makes of `context`.

    `scripts` run at the page's end; they are this project's own text or a library's. A value that
    `context` lacks is shown as a dash.
    """
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader("resp_tune", folder) for folder in (package, "reporting")]
        ),
        autoescape=True,
        undefined=_Missing,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(figure=figure, percent=percent, short=shortened, signed=signed)
    return environment.get_template(template).render(
        context,
        policy=_content_policy(scripts),
        scripts=[Markup(script) for script in scripts],  # noqa: S704  # no text from files
    )


class _Missing(jinja2.ChainableUndefined):
    """A value that the files do not hold, shown as a dash."""

    def __str__(self) -> str:
        return "–"


def _content_policy(scripts: Sequence[str]) -> str:
    digests = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    hashes = " ".join(f"'sha256-{digest}'" for digest in digests)
    return "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'" + (
        f"; img-src data: blob:; script-src {hashes}" if scripts else ""
    )
