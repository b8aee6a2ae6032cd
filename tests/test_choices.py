"""The names in common/choices.py are those that the modules behind them implement."""

from __future__ import annotations

import subprocess
import sys

from resp_tune.common import choices
from resp_tune.data.tasks import TASKS
from resp_tune.reporting.format import NAMES
from resp_tune.study.samplers import SAMPLERS
from resp_tune.study.schedulers import FOLD_RULES, Steps, make_schedulers
from resp_tune.tracking.tags import STATUS
from resp_tune.training.metrics import CYCLE_CLASSES


def test_tasks() -> None:
    assert tuple(TASKS) == choices.TASKS
    assert TASKS["cycles"].classes == CYCLE_CLASSES


def test_metrics() -> None:
    assert set(NAMES) <= set(choices.METRIC_MODES)
    assert set(choices.METRIC_NAMES) - set(choices.METRICS) == {"sensitivity", "specificity"}
    assert set(choices.CYCLE_METRICS) < set(choices.METRIC_MODES)


def test_samplers() -> None:
    assert tuple(SAMPLERS) == choices.SAMPLERS


def test_schedulers() -> None:
    made = [
        tuple(type(rule) for rule in make_schedulers(scheduler, fold_rule, "mcc", Steps(9, 2), ()))
        for scheduler in choices.SCHEDULERS
        for fold_rule in choices.FOLD_RULES
    ]
    assert len(set(made)) == len(choices.SCHEDULERS) * len(choices.FOLD_RULES)
    assert tuple(FOLD_RULES) == choices.FOLD_RULES


def test_states() -> None:
    assert tuple(STATUS) == choices.STATES


def test_the_names_need_no_library() -> None:
    code = (
        "import sys; before = {n.split('.')[0] for n in sys.modules}; "
        "import resp_tune.common.choices; "
        "added = {n.split('.')[0] for n in sys.modules} - before; "
        "print(*sorted(added - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["resp_tune"]
