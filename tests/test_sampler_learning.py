"""What samplers learn from trials that were pruned or have diverged."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from support.pruned_studies import RUNG, Point, run_pruned, unit_point
from support.spaces import space_of

from resp_tune.space.search_space import SearchSpace, load_space
from resp_tune.study.optuna_internals import ScoredStudy
from resp_tune.study.samplers import STARTUP_TRIALS, SpaceSampler, make_sampler
from resp_tune.study.scored_trials import scored_trials

MAX, MIN = StudyDirection.MAXIMIZE, StudyDirection.MINIMIZE
PRUNED = TrialState.PRUNED


def finished(value: float, *epochs: float) -> FrozenTrial:
    return create_trial(value=value, intermediate_values=dict(enumerate(epochs, 1)))


def pruned(*epochs: float) -> FrozenTrial:
    return create_trial(state=PRUNED, intermediate_values=dict(enumerate(epochs, 1)))


def diverged(worst: float) -> FrozenTrial:
    return create_trial(value=worst, user_attrs={"diverged": True})


def numbered(*trials: FrozenTrial) -> list[FrozenTrial]:
    for number, trial in enumerate(trials):
        trial.number = number
    return list(trials)


def scores(direction: StudyDirection, *trials: FrozenTrial) -> list[float | None]:
    seen = scored_trials(numbered(*trials), direction)
    assert all(t.state == TrialState.COMPLETE for t in seen if t.value is not None)
    return [None if t.value is None else round(t.value, 9) for t in seen]


@pytest.mark.parametrize(
    ("direction", "trials", "expected"),
    [
        # After epoch 1 the finished trials gained 0.3, 0.2 and 0.1.
        (
            MAX,
            [finished(0.7, 0.4), finished(0.6, 0.4), finished(0.5, 0.4), pruned(0.1)],
            [0.7, 0.6, 0.5, 0.3],
        ),
        (MAX, [finished(0.7, 0.4, 0.6, 0.7), pruned(0.3), pruned(0.2, 0.5)], [0.7, 0.6, 0.6]),
        # The loss rises towards the end: what was stopped early is not better for that.
        (MIN, [finished(1.5, 0.9, 1.5), pruned(1.0)], [1.5, 1.6]),
        (MAX, [pruned(0.3), pruned(0.2, 0.4)], [0.3, 0.4]),  # nothing is known of the end
        (MAX, [finished(0.7, 0.4, 0.7), pruned(0.3, math.nan)], [0.7, 0.6]),
        (MAX, [finished(0.7, 0.7), pruned()], [0.7, None]),
        (MAX, [finished(0.7, 0.4, 0.7), pruned(0.2), diverged(0.0)], [0.7, 0.5, 0.3]),
        (MIN, [finished(0.7, 0.7), finished(0.9, 0.9), diverged(15.9)], [0.7, 0.9, 1.1]),
        (MAX, [finished(0.2, 0.2), finished(0.2, 0.2), diverged(0.0)], [0.2, 0.2, 0.0]),
        (MAX, [diverged(0.0)], [0.0]),
    ],
)  # fmt: skip
def test_the_scores_that_samplers_see(
    direction: StudyDirection, trials: list[FrozenTrial], expected: list[float | None]
) -> None:
    assert scores(direction, *trials) == expected


def test_the_study_itself_keeps_its_states() -> None:
    study = optuna.create_study(direction="maximize")
    study.add_trials([finished(0.7, 0.4, 0.7), pruned(0.3), diverged(0.0)])
    study.ask()
    view = ScoredStudy.of(study)
    assert ScoredStudy.of(view) is view
    assert [t.state.name for t in view.get_trials()] == ["COMPLETE"] * 3 + ["RUNNING"]
    assert [t.value for t in view.get_trials()[:3]] == pytest.approx([0.7, 0.6, 0.5])
    assert len(view.get_trials(states=[PRUNED])) == 0
    assert [t.state.name for t in study.trials] == ["COMPLETE", "PRUNED", "COMPLETE", "RUNNING"]
    assert [t.value for t in study.trials] == [0.7, None, 0.0, None]


def far_from_the_centre(point: Point) -> float:
    return 0.7 - sum((x - 0.1) ** 2 for x in point.values()) / len(point)


@pytest.mark.parametrize(
    ("name", "attribute", "startup", "trials"),
    [("gp", "gp:relative_params:0", STARTUP_TRIALS, 12), ("cmaes", "cma:generation", 1, 30)],
)
def test_suggestions_come_from_the_model_though_most_trials_are_pruned(
    name: str, attribute: str, startup: int, trials: int
) -> None:
    space = load_space("default.yaml")
    study = optuna.create_study(
        direction="maximize", sampler=SpaceSampler(make_sampler(name, 3), space)
    )
    study.enqueue_trial(space.baseline_params())
    for number in range(trials):
        trial = study.ask()
        score = space.suggest(trial).dropout
        trial.report(score, 1)
        if number % 3:
            study.tell(trial, state=PRUNED)
        else:
            study.tell(trial, score)
    modelled = [t for t in study.trials[startup:] if attribute in t.system_attrs]
    assert len(modelled) == trials - startup
    if name == "cmaes":  # which updates its model after each population: 4 + 3 ln(11 parameters)
        assert [t.system_attrs[attribute] for t in modelled] == [0] * 11 + [1] * 11 + [2] * 7


def space_with(folder: Path, *names: str) -> SearchSpace:
    return space_of(folder, {name: {"type": "float", "low": 0.0, "high": 0.5} for name in names})


@pytest.mark.parametrize(
    ("name", "trials", "falling"),
    [
        ("tpe", 45, False),
        ("tpe", 45, True),
        ("cmaes", 60, False),
        ("cmaes", 60, True),
        ("gp", 16, False),
    ],
)
def test_a_model_finds_more_than_chance_though_most_trials_are_pruned(
    name: str, trials: int, falling: bool, tmp_path: Path
) -> None:
    """Where learning curves cross, and where scores fall after the rung."""
    space = space_with(tmp_path, "dropout", "time_shift", "max_mask_pct", "label_smoothing")

    def gain(point: Point) -> float:
        return -0.3 if falling else 0.25 - 0.2 * point["dropout"]

    def miss(sampler: str, seed: int) -> float:
        study = run_pruned(sampler, space, far_from_the_centre, seed=seed, trials=trials, gain=gain)
        done = [t for t in study.trials if t.state == TrialState.COMPLETE]
        return 0.7 - max(far_from_the_centre(unit_point(t)) for t in done)

    seeds = range({"gp": 1, "tpe": 2, "cmaes": 4}[name])
    chance = sum(miss("random", seed) for seed in seeds)
    assert sum(miss(name, seed) for seed in seeds) < chance * 2 / 3


def few_finished(space: SearchSpace, tied: bool) -> optuna.Study:
    """Return a study of 2 finished trials, 40 pruned ones and 18 that diverged in one corner."""
    study = optuna.create_study(direction="maximize")
    points = np.random.default_rng(0).random((60, 2)) / 2
    states = iter([TrialState.COMPLETE] * 2 + [PRUNED] * 40)
    for dropout, shift in points[points[:, 0].argsort()]:  # so the last 18 have the most dropout
        state = next(states, None)
        score = 0.1 if tied else 0.1 + 0.1 * dropout
        study.add_trial(
            create_trial(
                params={"dropout": dropout, "time_shift": shift},
                distributions=dict(space.distributions),
                state=state or TrialState.COMPLETE,
                value=0.0 if state is None else score,
                intermediate_values={RUNG: score},
                user_attrs={"diverged": state is None},
            )
        )
    return study


@pytest.mark.parametrize("name", ["tpe", "gp"])
@pytest.mark.parametrize("tied", [False, True], ids=["differ", "tie"])
def test_a_model_avoids_where_trials_diverge_though_few_finish(
    name: str, tied: bool, tmp_path: Path
) -> None:
    space = space_with(tmp_path, "dropout", "time_shift")
    study = few_finished(space, tied)
    study.sampler = SpaceSampler(make_sampler(name, 1), space)
    border = min(t.params["dropout"] for t in study.trials if t.user_attrs["diverged"])
    inside = 0
    for _ in range(asked := 20 if name == "tpe" else 4):
        trial = study.ask()
        inside += space.suggest(trial).dropout >= border
        study.tell(trial, state=TrialState.FAIL)  # from which no sampler learns
    assert inside / asked <= 0.2  # 0.3 at random


@pytest.mark.parametrize(
    ("name", "trials", "tied"),
    [
        ("tpe", 40, False),
        ("tpe", 40, True),
        ("cmaes", 40, False),
        ("cmaes", 40, True),
        ("gp", 16, True),
    ],
)
def test_a_model_avoids_where_trials_diverge(
    name: str, trials: int, tied: bool, tmp_path: Path
) -> None:
    """Also where few trials finish, none of them well, and the best lie beside the border."""
    space = space_with(tmp_path, "dropout", "time_shift")
    shares = []
    for seed in range(1 if name == "gp" else 2):
        study = run_pruned(
            name,
            space,
            lambda point: 0.2 if tied else 0.2 + 0.1 * point["dropout"],
            seed=seed,
            trials=trials,
            diverges=lambda point: point["dropout"] > 0.4,
        )
        late = study.trials[trials // 2 :]
        shares.append(sum(bool(t.user_attrs.get("diverged")) for t in late) / len(late))
    assert sum(shares) / len(shares) <= 0.4, shares  # 0.6 at random
