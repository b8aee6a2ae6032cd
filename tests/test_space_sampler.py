"""Suggestions of whole trials: none twice, on the grid, and as if a search had never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from support.instant import small_spec
from support.spaces import all_configs, conditional_space, new_study, space_of
from support.trial_queues import next_of, row, settings_of

from resp_tune.common.trial_key import TrialKey
from resp_tune.harness.console import describe_plan
from resp_tune.harness.run import prepare_study
from resp_tune.space.search_space import SearchSpace
from resp_tune.study.optuna_internals import one_commit
from resp_tune.study.samplers import SAMPLERS, SpaceSampler, make_sampler, resumed_sampler
from resp_tune.study.study import open_study, records
from resp_tune.study.trial_queue import SamplerSource, TrialQueue

GRID = {
    "dropout": {"type": "float", "low": 0.0, "high": 0.9, "step": 0.15},
    "n_mels": {"type": "ordinal", "values": [16, 20, 32]},
    "pad": {"type": "categorical", "values": ["silence", "repeat"]},
}
CONDITIONAL = {
    "pad": {"type": "categorical", "values": ["silence", "repeat"]},
    "width": {"type": "int", "low": 4, "high": 10, "step": 2},
    "depth": {"type": "int", "low": 2, "high": 4, "when": {"pad": "repeat", "width": [4, 8]}},
    "ema": {"type": "ordinal", "values": [0.0, 0.9], "when": {"depth": [2, 3]}},
}


def ask(name: str, space: SearchSpace, count: int) -> optuna.Study:
    study = new_study()
    study.sampler = SpaceSampler(make_sampler(name, 1), space)
    study.enqueue_trial(space.baseline_params())
    for number in range(count):
        trial = study.ask()
        config = space.suggest(trial)
        if number % 3:
            trial.report(config.dropout, 1)
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, config.dropout)
    return study


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_point_is_suggested_twice(name: str, tmp_path: Path) -> None:
    space = space_of(tmp_path, GRID)
    assert space.size == 42
    study = ask(name, space, 12 if name == "gp" else 42)
    points = {tuple(sorted(t.params.items())) for t in study.trials}
    assert len(points) == len(study.trials)


@pytest.mark.parametrize("name", [n for n in SAMPLERS if n != "gp"])  # which is slow
def test_no_point_is_suggested_twice_where_parameters_have_conditions(
    name: str, tmp_path: Path
) -> None:
    space = space_of(tmp_path, CONDITIONAL)
    study = ask(name, space, int(space.size))
    assert len({frozenset(t.params.items()) for t in study.trials}) == len(study.trials)


def test_a_point_is_repeated_where_all_were_tried(tmp_path: Path) -> None:
    space = space_of(tmp_path, {"width": {"type": "int", "low": 4, "high": 6}})
    study = ask("tpe", space, 5)
    assert {t.params["width"] for t in study.trials[:3]} == {4, 5, 6}
    assert {t.params["width"] for t in study.trials[3:]} <= {4, 5, 6}


def test_a_space_too_large_to_list_is_drawn_from_at_random(tmp_path: Path) -> None:
    class Stuck(optuna.samplers.RandomSampler):
        def sample_independent(self, *given: Any) -> Any:
            return 4

    ranges = {n: {"type": "int", "low": 4, "high": 64} for n in ("width", "n_mels", "batch_size")}
    space = space_of(tmp_path, ranges)
    assert space.size == 61**3
    study = new_study()
    study.sampler = SpaceSampler(Stuck(), space)
    asked = [space.suggest_values(study.ask()) for _ in range(5)]
    assert len({(v["width"], v["n_mels"], v["batch_size"]) for v in asked}) == 5  # all but trial 0


@pytest.mark.parametrize(
    ("parameters", "size"),
    [
        (GRID, 7 * 3 * 2),
        (CONDITIONAL, 2 * 4 + 2 * (2 * 2 + 1 - 1)),
        ({"width": {"type": "int", "low": 4, "high": 9, "log": True}}, 6),
        ({"dropout": {"type": "float", "low": 0.1, "high": 0.75, "step": 0.2}}, 4),
        ({"batch_size": {"type": "int", "low": 2, "high": 65_536}}, 65_535),
        ({"lr": {"type": "float", "low": 0.1, "high": 0.2}}, np.inf),
        (
            {
                "pad": GRID["pad"],
                "n_mels": GRID["n_mels"],
                "mixup": {**GRID["dropout"], "when": {"pad": "repeat"}},
            },
            3 * (1 + 7),
        ),
        (
            {
                "pad": GRID["pad"],
                "mixup": {"type": "float", "low": 0.1, "high": 1.0, "when": {"pad": "repeat"}},
            },
            np.inf,
        ),
    ],
)  # fmt: skip
def test_the_size_of_a_space(parameters: dict[str, Any], size: float, tmp_path: Path) -> None:
    space = space_of(tmp_path, parameters)
    if size < 1000:
        points = list(space.points())
        assert len({frozenset(p.items()) for p in points}) == len(points) == space.size
        # Optuna's own enumeration goes through the same configs.
        configs = all_configs(space)
        assert len(points) == len(configs)
        trials = [optuna.trial.FixedTrial(p) for p in points]
        drawn = {str(space.suggest(t)) for t in trials}  # type: ignore[arg-type]  # the same methods
        assert drawn == {str(c) for c in configs}
    if parameters is not CONDITIONAL:
        assert space.size == size


@pytest.mark.parametrize(
    ("low", "high", "step", "values"),
    [
        (0.0, 0.9, 0.15, [0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9]),
        (0.1, 0.7, 0.2, [0.1, 0.3, 0.5, 0.7]),
        (0.0, 0.35, 0.05, [0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35]),
        (0.3, 0.95, 0.3, [0.3, 0.6, 0.9]),
    ],
)
@pytest.mark.parametrize("name", ["tpe", "cmaes", "qmc", "random"])
def test_a_suggested_value_is_on_the_grid_in_the_study_and_in_the_config(
    name: str, low: float, high: float, step: float, values: list[float], tmp_path: Path
) -> None:
    steps = {"type": "float", "low": low, "high": high, "step": step}
    space = space_of(tmp_path, {"dropout": steps, "n_mels": GRID["n_mels"], "time_shift": steps})
    study = ask(name, space, 25)
    stored = {t.params[n] for t in study.trials for n in ("dropout", "time_shift")}
    assert stored == set(values)
    plain = new_study()  # Optuna's sampler alone, as in a study of an earlier release
    assert {space.suggest(plain.ask()).dropout for _ in range(60)} == set(values)


def queue_over(study: optuna.Study, space: SearchSpace, budget: int) -> TrialQueue:
    return TrialQueue(SamplerSource(study, space, settings_of(), budget=budget))


def open_at(folder: Path, name: str) -> optuna.Study:
    study = open_study(folder / "study.db", "s", "macro_f1", make_sampler("random", 0))
    study.sampler = resumed_sampler(name, 5, len(study.get_trials(deepcopy=False)))
    return study


def run(queue: TrialQueue, trials: int) -> None:
    """Run trials two at a time, of which every fourth fails."""
    keys: list[TrialKey] = []
    while trials or keys:
        while len(keys) < 2 and trials:
            keys.append(next_of(queue)["key"])
            trials -= 1
        key = keys.pop(0)
        queue.advance(key, [row(1, 0.1)])
        queue.end(key, "failed" if key.number % 4 == 0 else "finished")


def ask_and_fail(study: optuna.Study, space: SearchSpace) -> None:
    """Draw a trial that is not stored, as if the driver were killed before the commit."""
    with one_commit(study):
        space.suggest(study.ask())
        raise InterruptedError


def test_a_resumed_qmc_search_continues_its_sequence(tmp_path: Path) -> None:
    """Also with parameters under conditions, and where the first trial fails."""
    space = conditional_space(tmp_path)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    whole.mkdir()
    parts.mkdir()
    run(queue_over(open_at(whole, "qmc"), space, 8), 8)
    first = queue_over(open_at(parts, "qmc"), space, 8)
    run(first, 3)
    with pytest.raises(InterruptedError):
        ask_and_fail(first.source.study, space)
    first.next_trial()  # handed out, and the driver is killed
    run(queue_over(open_at(parts, "qmc"), space, 8), 5)
    expected, found = (open_at(f, "qmc").trials for f in (whole, parts))
    assert [t.params for t in found] == [t.params for t in expected]
    assert len({str(t.params) for t in found}) == 8
    assert len({t.params.get("sample_rate_index") for t in found}) > 2


def test_a_resumed_search_has_the_sampler_of_its_options(tmp_path: Path) -> None:
    spec = small_spec(tmp_path, "--sampler", "qmc", "--seed", "5", "--trials", "6")
    spec.location.folder.mkdir(parents=True)
    run(queue_over(prepare_study(spec), spec.space, 3), 3)
    study = prepare_study(spec)
    run(queue_over(study, spec.space, 6), 3)
    whole = tmp_path / "whole"
    whole.mkdir()
    run(queue_over(open_at(whole, "qmc"), spec.space, 6), 6)
    assert [t.params for t in study.trials] == [t.params for t in open_at(whole, "qmc").trials]
    assert (
        resumed_sampler("tpe", 5, 3)._rng.rng.rand() != resumed_sampler("tpe", 5, 0)._rng.rng.rand()
    )  # type: ignore[attr-defined]  # private


@pytest.mark.parametrize(("name", "field"), [("cmaes", "pad"), ("cmaes", "ema"), ("gp", "ema")])
def test_what_a_sampler_cannot_model_is_drawn_by_tpe(name: str, field: str, tmp_path: Path) -> None:
    """The better value of a categorical or conditional parameter is drawn more often."""
    parameters: dict[str, Any] = {
        "lr": {"type": "float", "low": 1e-3, "high": 1e-2},
        "pad": CONDITIONAL["pad"],
        "ema": {"type": "ordinal", "values": [0.0, 0.9], "when": {"pad": "repeat"}},
    }
    if field == "pad":
        del parameters["ema"]
    space = space_of(tmp_path, parameters)
    study = optuna.create_study(
        direction="maximize", sampler=SpaceSampler(make_sampler(name, 3), space)
    )
    asked = 16 if name == "gp" else 40
    values = []
    for _ in range(asked):
        trial = study.ask()
        config = space.suggest(trial)
        study.tell(trial, (config.pad == "repeat") + (config.ema == 0.9))
        if field == "pad" or config.pad == "repeat":
            values.append(getattr(config, field))
    late = values[len(values) // 2 :]
    assert late.count("repeat" if field == "pad" else 0.9) / len(late) >= 0.7


def test_the_plan_names_points_and_what_tpe_draws(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    space_of(tmp_path, GRID)
    flags = ("--space", str(path), "--sampler", "cmaes", "--trials", "60")
    lines = list(describe_plan(small_spec(tmp_path, *flags)))
    topics, notes = dict(lines), [text for topic, text in lines if topic == "note"]
    assert "dropout, n_mels, pad; 42 points; " in topics["space"]
    assert topics["budget"].startswith("42 trials ")
    assert any(n.startswith("TPE draws pad, ") and "cmaes models no" in n for n in notes)
    assert any("each of the 42 points" in n and "60 trials were asked for" in n for n in notes)
    timed = small_spec(tmp_path, "--space", str(path), "--time-budget", "5m")
    assert timed.budget == 42
    assert any("each of the 42 points" in text for _, text in describe_plan(timed))


def test_a_table_has_one_number_for_one_value(tmp_path: Path) -> None:
    space = space_of(tmp_path, GRID, fixed={}, preset="baseline")
    study = open_at(tmp_path, "random")
    run(queue_over(study, space, 12), 12)
    found = {r.values["dropout"] for r in records(study, space)}
    assert found <= {0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9}
    assert len(found) > 4
    assert {r.config.dropout for r in records(study, space)} == found
