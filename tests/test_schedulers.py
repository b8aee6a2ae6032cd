"""Schedulers: where they decide, and that a restart forgets nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from resp_tune.cluster.ray_internals import asha_rungs
from resp_tune.common.choices import SCHEDULERS
from resp_tune.common.trial_key import TrialKey
from resp_tune.config import TrialConfig
from resp_tune.execution.schedulers import grace_period, make_scheduler, rungs
from resp_tune.study.study import TrialRecord
from resp_tune.training.metrics import METRICS

EPOCHS = 30


@pytest.mark.parametrize("epochs", [1, 2, 3, 5, 9, 20, 27, 30, 100, 243, 1000])
def test_our_rungs_are_those_of_ray(epochs: int) -> None:
    """A trial reports at each of them; one more or one less would be a decision of chance."""
    scheduler: Any = make_scheduler("asha", epochs=epochs, metric="macro_f1", past=[])
    epochs_of_ray = sorted(epoch for epoch, _ in asha_rungs(scheduler))
    assert rungs("asha", epochs) == tuple(epoch for epoch in epochs_of_ray if epoch < epochs)
    assert rungs("none", epochs) == ()


def test_every_trial_is_given_a_third_of_its_budget() -> None:
    """OneCycle's learning rate is still near its peak before."""
    assert [grace_period(e) for e in (1, 2, 3, 20, 100)] == [1, 1, 2, 7, 35]
    assert all(rung >= 0.35 * 100 for rung in rungs("asha", 100))


def test_without_a_scheduler_nothing_is_stopped() -> None:
    assert type(make_scheduler("none", epochs=3, metric="mcc", past=[])) is FIFOScheduler
    assert set(SCHEDULERS) == {"asha", "none"}


def curve(number: int, metric: str) -> list[float]:
    """A metric by epoch: better with luck and time, noisy, and of either direction."""
    rng = np.random.default_rng(number)
    skill = rng.random()
    values = skill * (1 - np.exp(-np.arange(1, EPOCHS + 1) / 8)) + rng.normal(0, 0.05, EPOCHS)
    return [float(v) for v in (values if METRICS[metric].mode == "max" else 2 - values)]


class Life:
    """One trial under a scheduler, as Ray drives it: a report after every epoch."""

    def __init__(self, scheduler: TrialScheduler, number: int, metric: str, name: str) -> None:
        self.scheduler, self.metric = scheduler, metric
        self.trial: Any = SimpleNamespace(trial_id=name, config={"key": TrialKey(number)})
        self.values = curve(number, metric)
        self.number, self.epoch, self.stopped = number, 0, False
        scheduler.on_trial_add(None, self.trial)  # type: ignore[arg-type]  # the controller is not used

    def run(self, until: int) -> list[str]:
        """The scheduler's answers up to epoch `until`, or to the first STOP."""
        best = max if METRICS[self.metric].mode == "max" else min
        answers = []
        while self.epoch < until and not self.stopped:
            self.epoch += 1
            result = {"epoch": self.epoch, "best_so_far": best(self.values[: self.epoch])}
            answers.append(self.scheduler.on_trial_result(None, self.trial, result))  # type: ignore[arg-type]  # as above
            self.stopped = answers[-1] == TrialScheduler.STOP
            if self.stopped:
                self.scheduler.on_trial_complete(None, self.trial, result)  # type: ignore[arg-type]  # as above
        return answers

    def record(self) -> TrialRecord:
        rows = [
            {"epoch": e, f"val_{self.metric}": v}
            for e, v in enumerate(self.values[: self.epoch], 1)
        ]
        ended = self.stopped or self.epoch == EPOCHS
        state = ("finished" if self.epoch == EPOCHS else "pruned") if ended else None
        return TrialRecord(TrialKey(self.number), state, None, TrialConfig(), {}, rows, 1.0, None)  # type: ignore[arg-type]  # a literal


def asha(metric: str, past: list[TrialRecord]) -> TrialScheduler:
    return make_scheduler("asha", epochs=EPOCHS, metric=metric, past=past)


@pytest.mark.parametrize("metric", ["macro_f1", "log_loss"])
def test_a_rebuilt_scheduler_decides_as_one_that_saw_it_all(metric: str) -> None:
    live = asha(metric, [])
    before = [Life(live, n, metric, f"first-{n}") for n in range(12)]
    for life in before:
        life.run(EPOCHS)
    rebuilt = asha(metric, [life.record() for life in before])
    answers = []
    for number in range(12, 40):
        one, other = (Life(s, number, metric, f"then-{number}") for s in (live, rebuilt))
        answers.append(one.run(EPOCHS))
        assert answers[-1] == other.run(EPOCHS), number
    early = [a for a in answers if len(a) < EPOCHS]
    assert 0 < len(early) < len(answers)  # it stops some and not others


@pytest.mark.parametrize("metric", ["macro_f1", "log_loss"])
@pytest.mark.parametrize("reached", [5, 11, 12, 20])
def test_a_trial_that_was_cut_off_goes_on_as_if_it_had_not_been(reached: int, metric: str) -> None:
    """It has another id in Ray then, but the rung that it has passed is behind it.

    The trials come in the order of their skill: each passes the rung that it comes to, and the
    early ones would not pass it again after the late ones have raised it.
    """
    live = asha(metric, [])
    by_skill = sorted(range(30), key=lambda number: np.random.default_rng(number).random())
    lives = [Life(live, n, metric, f"first-{n}") for n in by_skill]
    for life in lives:
        life.run(reached)
    records = sorted((life.record() for life in lives), key=lambda record: record.number)
    running = [life for life in lives if not life.stopped]
    assert len(running) > 10
    rebuilt = asha(metric, records)
    for life in running:
        again = Life(rebuilt, life.number, metric, f"again-{life.number}")
        again.epoch = reached
        assert again.run(EPOCHS) == life.run(EPOCHS), life.number


def test_epochs_without_a_figure_are_not_counted() -> None:
    """What a diverged trial reported last has no place on a rung."""
    first = rungs("asha", EPOCHS)[0]
    rows: list[dict[str, float]] = [{"epoch": e, "val_macro_f1": 0.9} for e in range(1, first)]
    diverged = [*rows, {"epoch": first, "val_macro_f1": float("nan")}]
    unscored: list[dict[str, float]] = [*rows, {"epoch": first}]
    for past in (rows, diverged, unscored):
        record = TrialRecord(TrialKey(0), "diverged", None, TrialConfig(), {}, past, 1.0, None)
        scheduler: Any = asha("macro_f1", [record])
        assert all(not recorded for _, recorded in asha_rungs(scheduler))
