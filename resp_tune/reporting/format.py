"""Write metrics and other numbers as the pages and tables show them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from resp_tune.common.choices import LEVELS

NONE = "–"
MINUS = "\N{MINUS SIGN}"
NAMES = {"icbhi_score": "ICBHI score", "macro_f1": "macro-F1", "mcc": "MCC", "auroc": "AUROC"}


def metric_name(key: str) -> str:
    """Return the name of a metric in prose: one of `NAMES`, or the key with spaces."""
    level, _, base = key.partition("_")
    if level in LEVELS:
        return f"{metric_name(base)} by {level}"
    return NAMES.get(key, key.replace("_", " "))


def figure(value: float | None) -> str:
    """Return a value with three decimals, or a dash."""
    return NONE if value is None else f"{value:.3f}"


def signed(value: float) -> str:
    """Return three decimals with a sign, or `0.000`."""
    return f"{value:+.3f}".replace("-", MINUS) if round(abs(value), 3) else "0.000"


def spread(mean: float | None, sd: float | None) -> str:
    """Return `0.531 ± 0.014`, or the mean alone."""
    return figure(mean) if mean is None or sd is None else f"{mean:.3f} ± {sd:.3f}"


def ranged(value: float | None, interval: Sequence[float] | None) -> str:
    """Return `0.505 [0.410, 0.600]`, or the value alone."""
    brackets = f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else ""
    return figure(value) + brackets


def percent(share: float | None) -> str:
    """Return a share of 1 as whole percent."""
    return NONE if share is None else f"{100 * share:.0f} %"


def sentence(text: str) -> str:
    """Return `text` with a capital first letter, the others unchanged."""
    return text[:1].upper() + text[1:]


def shortened(value: object) -> str:
    """Return a cell of a table: numbers with four significant digits, all else unchanged."""
    text = "" if value is None else str(value)
    try:
        found = float(text)
    except ValueError:
        return text or NONE
    if text.lstrip("-").isdecimal() or not math.isfinite(found):
        return text
    return f"{found:.0f}" if found.is_integer() and abs(found) < 1e9 else f"{found:.4g}"
