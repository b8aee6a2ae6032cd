"""Schedulers: where they decide, as Ray's ASHA does, and that a restart forgets nothing."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler
from scipy.stats import wilcoxon

from resp_tune.common.choices import FOLD_RULES, SCHEDULERS
from resp_tune.common.trial_key import TrialKey
from resp_tune.config import TrialConfig
from resp_tune.study.schedulers import (
    Asha,
    Forgiving,
    Scheduler,
    Steps,
    Wilcoxon,
    decision_steps,
    grace_period,
    make_schedulers,
    rungs,
)
from resp_tune.study.study import TrialRecord
from resp_tune.training.metrics import METRICS

EPOCHS = 30


def ray_asha(epochs: int, metric: str = "macro_f1") -> Any:
    return AsyncHyperBandScheduler(
        time_attr="epoch",
        metric="best_so_far",
        mode=METRICS[metric].mode,
        max_t=epochs,
        grace_period=grace_period(epochs),
        reduction_factor=3,
    )


@pytest.mark.parametrize("epochs", [1, 2, 3, 5, 9, 20, 27, 30, 100, 243, 1000])
def test_our_rungs_are_those_of_ray(epochs: int) -> None:
    of_ray = sorted(epoch for epoch, _ in ray_asha(epochs)._brackets[0]._rungs)
    assert rungs("asha", Steps(epochs)) == tuple(epoch for epoch in of_ray if epoch < epochs)
    assert rungs("none", Steps(epochs)) == ()


def test_every_trial_is_given_a_third_of_its_budget() -> None:
    """OneCycle's learning rate is still near its peak before."""
    assert [grace_period(e) for e in (1, 2, 3, 20, 100)] == [1, 1, 2, 7, 35]
    assert all(rung >= 0.35 * 100 for rung in rungs("asha", Steps(100)))


def test_each_fold_has_the_rungs_of_one_and_an_end() -> None:
    steps = Steps(20, folds=3)
    assert rungs("asha", steps) == (7, 27, 47)
    assert decision_steps("asha", steps) == (7, 20, 27, 40, 47)
    assert decision_steps("none", steps) == (20, 40)
    assert steps.total == 60


def test_without_a_scheduler_nothing_is_stopped() -> None:
    assert set(SCHEDULERS) == {"asha", "none"}
    made = {
        (scheduler, rule, folds): [type(s) for s in make(scheduler, rule, folds)]
        for scheduler in SCHEDULERS
        for rule in FOLD_RULES
        for folds in (1, 2)
    }
    assert made["none", "none", 2] == made["none", "forgiving", 1] == []
    assert made["asha", "forgiving", 1] == made["asha", "none", 2] == [Asha]
    assert made["none", "forgiving", 2] == [Forgiving]
    assert made["asha", "forgiving", 2] == [Asha, Forgiving]


def make(scheduler: str, rule: str, folds: int) -> list[Scheduler]:
    return make_schedulers(scheduler, rule, "macro_f1", Steps(9, folds), ())


def curve(number: int, metric: str, epochs: int = EPOCHS) -> list[float]:
    """A metric by epoch: better with luck and time, noisy, and of either direction."""
    rng = np.random.default_rng(number)
    skill = rng.random()
    values = skill * (1 - np.exp(-np.arange(1, epochs + 1) / 8)) + rng.normal(0, 0.05, epochs)
    return [float(v) for v in (values if METRICS[metric].mode == "max" else 2 - values)]


class Life:
    """One trial under a scheduler: a report after every epoch, as at most from a worker."""

    def __init__(self, number: int, metric: str, values: list[float] | None = None) -> None:
        self.number, self.metric = number, metric
        self.values = curve(number, metric) if values is None else values
        self.rows: list[dict[str, float]] = []
        self.stopped: str | None = None

    @property
    def key(self) -> TrialKey:
        return TrialKey(self.number)

    def run(self, scheduler: Scheduler, until: int | None = None) -> int:
        """Report until step `until` or until it is stopped; return the steps that it has then."""
        until = len(self.values) if until is None else until
        while len(self.rows) < until and self.stopped is None:
            value = self.values[len(self.rows)]
            self.rows.append({"epoch": len(self.rows) + 1, f"val_{self.metric}": value})
            self.stopped = scheduler.stop_reason(self.key, self.rows)
        if self.stopped or len(self.rows) == len(self.values):
            scheduler.add(self.record())
        return len(self.rows)

    def record(self) -> TrialRecord:
        finished = len(self.rows) == len(self.values)
        state = "finished" if finished else "pruned" if self.stopped else None
        score = self.rows[-1][f"val_{self.metric}"] if finished else None
        rows = list(self.rows)
        return TrialRecord(self.key, state, score, TrialConfig(), {}, rows, 1.0, None)  # type: ignore[arg-type]  # a literal


@pytest.mark.parametrize("metric", ["macro_f1", "log_loss"])
def test_it_decides_as_rays_asha_does(metric: str) -> None:
    theirs, ours = ray_asha(EPOCHS, metric), Asha(metric, Steps(EPOCHS))
    best = max if METRICS[metric].mode == "max" else min
    ended = []
    for number in range(40):
        trial: Any = SimpleNamespace(trial_id=str(number))
        theirs.on_trial_add(None, trial)
        values = curve(number, metric)
        for epoch in range(1, EPOCHS + 1):
            result = {"epoch": epoch, "best_so_far": best(values[:epoch])}
            if theirs.on_trial_result(None, trial, result) == TrialScheduler.STOP:
                break
        ended.append(epoch)
        assert Life(number, metric).run(ours) == epoch, number
    assert 0 < sum(epoch < EPOCHS for epoch in ended) < len(ended)


@pytest.mark.parametrize("metric", ["macro_f1", "log_loss"])
def test_a_rebuilt_scheduler_decides_as_one_that_saw_it_all(metric: str) -> None:
    live = Asha(metric, Steps(EPOCHS))
    before = [Life(n, metric) for n in range(12)]
    for life in before:
        life.run(live)
    rebuilt = Asha(metric, Steps(EPOCHS), [life.record() for life in before])
    for number in range(12, 40):
        assert Life(number, metric).run(live) == Life(number, metric).run(rebuilt), number


@pytest.mark.parametrize("metric", ["macro_f1", "log_loss"])
@pytest.mark.parametrize("reached", [5, 11, 12, 20])
def test_a_trial_that_was_cut_off_goes_on_as_if_it_had_not_been(reached: int, metric: str) -> None:
    """The rung that it has passed is behind it.

    The trials come in the order of their skill: each passes the rung that it comes to, and the
    early ones would not pass it again after the late ones have raised it.
    """
    live = Asha(metric, Steps(EPOCHS))
    by_skill = sorted(range(30), key=lambda number: np.random.default_rng(number).random())
    lives = [Life(n, metric) for n in by_skill]
    for life in lives:
        life.run(live, until=reached)
    records = sorted((life.record() for life in lives), key=lambda record: record.number)
    running = [life for life in lives if not life.stopped]
    assert len(running) > 10
    rebuilt = Asha(metric, Steps(EPOCHS), records)
    for life in running:
        again = Life(life.number, metric)
        again.rows = list(life.rows)
        assert again.run(rebuilt) == life.run(live), life.number


def test_epochs_without_a_figure_are_not_counted() -> None:
    """What a diverged trial reported last has no place on a rung."""
    (first,) = rungs("asha", Steps(EPOCHS))
    rows: list[dict[str, float]] = [{"epoch": e, "val_macro_f1": 0.9} for e in range(1, first)]
    diverged = [*rows, {"epoch": first, "val_macro_f1": float("nan")}]
    unscored: list[dict[str, float]] = [*rows, {"epoch": first}]
    for past in (rows, diverged, unscored):
        record = TrialRecord(TrialKey(0), "diverged", None, TrialConfig(), {}, past, 1.0, None)
        scheduler = Asha("macro_f1", Steps(EPOCHS), [record])
        assert scheduler.rungs == {first: {}}
        assert scheduler.stop_reason(TrialKey(1), past) is None


def test_in_a_later_fold_only_its_own_epochs_count_for_the_best() -> None:
    """A lucky epoch of the first fold would otherwise decide in the second."""
    scheduler = Asha("macro_f1", Steps(3, folds=2))
    assert list(scheduler.rungs) == [2, 5]
    lucky = Life(0, "macro_f1", [0.9, 0.1, 0.2, 0.3, 0.3, 0.3])
    lucky.run(scheduler)
    assert scheduler.rungs == {2: {TrialKey(0): 0.9}, 5: {TrialKey(0): 0.3}}


# Between folds

TWO = Steps(epochs=2, folds=3)


def folds(*scores: float) -> list[float]:
    """The means of a trial whose folds have these final scores."""
    means = [float(np.mean(scores[: n + 1])) for n in range(len(scores))]
    return [value for mean in means for value in (mean / 2, mean)]


def test_scores_of_the_folds_follow_from_the_means() -> None:
    rows = [{"val_macro_f1": value} for value in folds(0.5, 0.2, 0.8)]
    assert TWO.fold_scores(rows, "macro_f1") == pytest.approx([0.5, 0.2, 0.8])
    assert TWO.fold_scores(rows[:5], "macro_f1") == pytest.approx([0.5, 0.2])
    assert TWO.fold_scores(rows[:1], "macro_f1") == []


@pytest.mark.parametrize("metric", ["macro_f1", "log_loss"])
@pytest.mark.parametrize(
    ("scores", "steps"),
    [
        ((0.45, 0.45, 0.45), 6),  # worse than the incumbent's mean, not than its worst fold
        ((0.39, 0.9, 0.9), 2),
        ((0.6, 0.1, 0.9), 4),
        ((0.4, 0.4, 0.4), 6),  # equal is not worse
    ],
)
def test_a_trial_below_the_incumbents_worst_fold_stops(
    scores: tuple[float, ...], steps: int, metric: str
) -> None:
    sign = 1 if METRICS[metric].mode == "max" else -1
    incumbent = Life(0, metric, [sign * v for v in folds(0.6, 0.4, 0.8)])
    worse = Life(1, metric, [sign * v for v in folds(0.5, 0.45, 0.5)])
    rule = Forgiving(metric, TWO)
    assert incumbent.run(rule) == worse.run(rule) == 6, "worse, but not than the worst fold"
    rebuilt = Forgiving(metric, TWO, [incumbent.record(), worse.record()])
    for scheduler in (rule, rebuilt):
        trial = Life(2, metric, [sign * v for v in folds(*scores)])
        assert trial.run(scheduler) == steps
        assert trial.stopped == (None if steps == 6 else f"fold {steps // 2}")


@pytest.mark.parametrize("kind", [Forgiving, Wilcoxon])
def test_a_pruned_trial_is_no_incumbent(kind: type[Scheduler]) -> None:
    rule = kind("macro_f1", TWO)
    stopped = Life(0, "macro_f1", folds(0.9, 0.9, 0.9))
    stopped.run(rule, until=2)
    assert Life(1, "macro_f1", folds(0.1, 0.1, 0.1)).run(rule) == 6


FIVE = Steps(epochs=5, folds=3)  # of each fold, epochs 2 to 5 are compared


def means(own: list[float]) -> list[float]:
    """The rows' means of a trial with these scores of each step on its own fold."""
    ends = [0.0, own[4], own[4] + own[9]]
    return [(ends[step // 5] + own[step]) / (step // 5 + 1) for step in range(len(own))]


def pruner_stops(own: list[float], best: list[float], metric: str) -> bool:
    """What Optuna's pruner says of the epochs that count, told one after the other."""
    direction = "maximize" if METRICS[metric].mode == "max" else "minimize"
    study = optuna.create_study(direction=direction)
    pruner = optuna.pruners.WilcoxonPruner(p_threshold=0.1, n_startup_steps=0)
    late = [step for step in range(len(own)) if step % 5 >= 1]
    for values in (best, own):
        trial = study.ask()
        for step in late:
            trial.report(values[step], step)
        if values is best:
            study.tell(trial, float(np.mean([values[step] for step in late])))
    return pruner.prune(study, study._storage.get_trial(trial._trial_id))


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("metric", ["macro_f1", "log_loss"])
@pytest.mark.parametrize("seed", range(40))
def test_the_signed_rank_test_is_scipys_and_optunas(seed: int, metric: str) -> None:
    sign = 1.0 if METRICS[metric].mode == "max" else -1.0
    draw = np.random.default_rng(seed)
    best = draw.uniform(0.3, 0.7, 15)
    own = best + draw.normal(-0.02, 0.05, 15)
    incumbent = Life(0, metric, [sign * v for v in means(best.tolist())])
    rule = Wilcoxon(metric, FIVE)
    incumbent.run(rule)
    trial = Life(1, metric, [sign * v for v in means(own.tolist())])
    taken = trial.run(rule)
    expected = 15
    for end in (5, 10):
        late = np.arange(end) % 5 >= 1
        p = wilcoxon((own - best)[:end][late], alternative="less", zero_method="zsplit").pvalue
        folds_of = [np.mean(values[4:end:5]) for values in (own, best)]
        if p < 0.1 and folds_of[0] < folds_of[1]:
            expected = end
            break
    assert taken == expected
    if expected < 15:
        given = [sign * v for v in own[:expected]], [sign * v for v in best[:expected]]
        assert pruner_stops(*given, metric) or np.mean(own[:expected][late]) >= np.mean(
            best[:expected][late]
        )
    rebuilt = Wilcoxon(metric, FIVE, [incumbent.record()])
    assert Life(2, metric, trial.values).run(rebuilt) == taken


def test_the_signed_rank_test_has_cases_of_both_kinds() -> None:
    rule = Wilcoxon("macro_f1", FIVE)
    assert Life(0, "macro_f1", means([0.5] * 15)).run(rule) == 15
    assert Life(1, "macro_f1", means([0.5] * 15)).run(rule) == 15, "ties are no evidence"
    assert Life(2, "macro_f1", means([0.9, *[0.49] * 14])).run(rule) == 5, "epoch 1 is left out"
    assert Life(3, "macro_f1", means([0.4, 0.4, 0.4, 0.4, 0.51] * 3)).run(rule) == 15
    assert Life(4, "macro_f1", [math.nan] * 15).run(rule) == 15
    few = Wilcoxon("macro_f1", TWO)  # 2 epochs of a fold: too few pairs before the second fold
    assert Life(0, "macro_f1", [0.6] * 6).run(few) == 6
    assert Life(1, "macro_f1", [0.1] * 6).run(few) == 4
