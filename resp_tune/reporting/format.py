"""Figures as the page writes them."""

from __future__ import annotations

LOWER_IS_BETTER = frozenset({"log_loss"})
NONE = "–"
MINUS = "\N{MINUS SIGN}"
NAMES = {
    "icbhi_score": "ICBHI score",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "macro_f1": "macro-F1",
    "balanced_accuracy": "balanced accuracy",
    "accuracy": "accuracy",
    "mcc": "MCC",
    "auroc": "AUROC",
    "log_loss": "log loss",
}


def metric_name(key: str) -> str:
    """A metric as a reader writes it."""
    return NAMES.get(key, key.replace("_", " "))


def figure(value: float | None) -> str:
    """Three decimals, or a dash."""
    return NONE if value is None else f"{value:.3f}"


def signed(value: float) -> str:
    """Three decimals with a sign; what rounds to nothing has none."""
    return f"{value:+.3f}".replace("-", MINUS) if round(abs(value), 3) else "0.000"


def spread(mean: float | None, sd: float | None) -> str:
    """`0.531 ± 0.014`, or the mean alone."""
    return figure(mean) if mean is None or sd is None else f"{mean:.3f} ± {sd:.3f}"


def ranged(value: float | None, low: float | None, high: float | None) -> str:
    """`0.505 [0.410, 0.600]`, or the value alone."""
    brackets = "" if low is None or high is None else f" [{low:.3f}, {high:.3f}]"
    return figure(value) + brackets


def counted(number: int, noun: str) -> str:
    """`1 clip`, `2 clips`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
