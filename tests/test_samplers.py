"""Every sampler by name, over the default space."""

from __future__ import annotations

import math
from pathlib import Path

import optuna
import pytest
from support.spaces import conditional_space, space_of

from resp_tune.space.search_space import SearchSpace, load_space
from resp_tune.study.samplers import SAMPLERS, make_sampler, unsupported_fields


def objective(trial: optuna.Trial, space: SearchSpace) -> float:
    config = space.suggest(trial)
    return -((math.log10(config.lr) + 2.5) ** 2) - (config.dropout - 0.2) ** 2


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_runs_over_the_default_space(name: str) -> None:
    space = load_space("default.yaml")
    runs = []
    for _ in range(1 if name == "gp" else 2):  # it fits for seconds
        study = optuna.create_study(direction="maximize", sampler=make_sampler(name, 7))
        study.enqueue_trial(space.baseline_params())
        study.optimize(lambda trial: objective(trial, space), n_trials=15)
        assert [t.state.name for t in study.trials] == ["COMPLETE"] * 15
        runs.append([t.params for t in study.trials])
    assert runs[0] == runs[-1]  # one after another and with one seed, a search can be repeated
    assert len({str(p) for p in runs[0]}) > 10
    other = optuna.create_study(sampler=make_sampler(name, 8))
    assert space.suggest(other.ask()) != space.suggest(
        optuna.trial.FixedTrial(runs[0][1])  # type: ignore[arg-type]  # has the same methods
    )


def test_fields_that_a_sampler_cannot_see(tmp_path: Path) -> None:
    space = space_of(
        tmp_path,
        {
            "lr": {"type": "float", "low": 1e-3, "high": 1e-2},
            "pad": {"type": "categorical", "values": ["silence", "repeat"]},
        },
    )
    assert unsupported_fields("cmaes", space) == ["pad"]
    assert unsupported_fields("tpe", space) == []


def test_conditions_that_a_sampler_cannot_see(tmp_path: Path) -> None:
    space = conditional_space(tmp_path)
    assert unsupported_fields("gp", space) == ["sample_rate"]
    assert unsupported_fields("cmaes", space) == ["f_max", "normalise", "balance", "sample_rate"]
    assert (
        unsupported_fields("tpe", space)
        == unsupported_fields("qmc", space)
        == unsupported_fields("random", space)
        == []
    )
