"""The names that users choose from, type or read, each defined here once.

Only the standard library is imported: `--help` and a mistyped flag must not wait for Ray, Optuna
and torch. tests/test_choices.py compares these names with the modules that implement them.
"""

from __future__ import annotations

from typing import Literal, get_args

Mode = Literal["max", "min"]

TASKS = ("diagnosis", "diagnosis-8", "healthy-sick", "chronic", "copd", "cycles")
TASK_FILES = (".yaml", ".yml")  # suffixes of a file that defines a task
PROTOCOLS = ("patient", "official", "recording", "device")
SCHEDULERS = ("asha", "none")
FoldOrder = Literal["sequence", "together"]
FOLD_ORDERS: tuple[FoldOrder, ...] = get_args(FoldOrder)
FOLD_RULES = ("forgiving", "wilcoxon", "none")  # between folds that are trained in sequence
SAMPLERS = ("tpe", "gp", "cmaes", "qmc", "random")

# Which direction is better.
_MODES: dict[str, Mode] = {
    "macro_f1": "max",
    "balanced_accuracy": "max",
    "mcc": "max",
    "auroc": "max",
    "log_loss": "min",
    "accuracy": "max",
    "icbhi_score": "max",
    "sensitivity": "max",
    "specificity": "max",
    "balanced_log_loss": "min",
}
METRIC_NAMES = tuple(_MODES)
FIRST_METRICS = METRIC_NAMES[:9]  # of release 0.1, whose columns in tables keep their places
REPORTED_ONLY = ("sensitivity", "specificity")  # a constant answer has one of them at 1
METRICS = tuple(name for name in METRIC_NAMES if name not in REPORTED_ONLY)
CYCLE_METRICS = ("icbhi_score", "sensitivity", "specificity")  # need the class `normal`

# What is scored: each recording (in the task `cycles`, each cycle), or all of a session or patient.
Level = Literal["recording", "session", "patient"]
LEVELS: tuple[Level, ...] = get_args(Level)


def at_level(metric: str, level: str) -> str:
    """Return the key of a metric at a level: `macro_f1` or, for example, `patient_macro_f1`."""
    return metric if level == "recording" else f"{level}_{metric}"


# The direction of every key.
METRIC_MODES: dict[str, Mode] = {
    at_level(name, level): mode
    for level in LEVELS
    for name, mode in _MODES.items()
    if level == "recording" or name not in CYCLE_METRICS
}

LARGEST_ENSEMBLE = 50  # trials

State = Literal["finished", "pruned", "diverged", "failed"]
STATES: tuple[State, ...] = get_args(State)

# The first columns of trials.csv; one for each searched field follows.
TRIAL_COLUMNS = ("number", "state", "score", "epochs", "seconds", "seed", "mlflow_run_id")

MLFLOW_PORT = 5000  # of `scripts/ui`, and of MLflow's own server
COMPARED_RUNS = 5  # that the link `compare` opens side by side
LINK_TEXTS = {  # what each link into MLflow shows
    "view": "trials, best first, with columns",
    "trials": "trials, best first",
    "search": "the search and all its trials",
    "charts": "learning curves of the trials",
    "compare": "the best trials compared",
}
