"""`when` and `with`: who is asked for, what moves along, what can come together, and mistakes."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.spaces import all_configs, conditional_space, new_study, space_of

from resp_tune.errors import UserError
from resp_tune.space.search_space import SearchSpace
from resp_tune.study.samplers import SAMPLERS, make_sampler

RATES = {
    "type": "ordinal",
    "values": [4000, 8000, 16_000],
    "with": {"n_fft": [256, 512, 1024], "hop_length": [128, 256, 512]},
}
PADS = {"type": "categorical", "values": ["silence", "repeat"]}
SHIFT = {"type": "float", "low": 0.5, "high": 0.9}


def test_fields_that_move_with_another(tmp_path: Path) -> None:
    space = space_of(tmp_path, {"sample_rate": RATES})
    configs = all_configs(space)
    moved = [(c.sample_rate, c.n_fft, c.hop_length) for c in configs]
    assert sorted(moved) == [(4000, 256, 128), (8000, 512, 256), (16_000, 1024, 512)]
    assert [space.values(c) for c in configs] == [{"sample_rate": m[0]} for m in moved]
    assert len(space.front_ends()) == 3
    assert space.baseline_params() == {"sample_rate_index": 0}


def test_examples_and_points_of_a_field_with_a_condition(tmp_path: Path) -> None:
    rates = {**RATES, "values": [8000, 12_000, 16_000], "when": {"pad": "repeat"}}
    lr = {"type": "float", "low": 0.01, "high": 0.1}
    space = space_of(tmp_path, {"pad": PADS, "sample_rate": rates, "lr": lr})
    examples = space.examples("sample_rate")
    assert examples[0] == space.baseline()
    assert sorted(c.sample_rate for c in examples) == [4000, 8000, 12_000, 16_000]
    assert all(c.pad == ("repeat" if c.sample_rate > 4000 else c.pad) for c in examples)
    assert len({c.lr for c in examples[1:]}) == 1, "other fields have the baseline's values"
    assert {(c.n_fft, c.hop_length) for c in examples[1:]} == {(256, 128), (512, 256), (1024, 512)}
    finite = space_of(tmp_path, {"pad": PADS, "sample_rate": rates, "balance": {
        "type": "categorical", "values": ["none", "focal"]}})  # fmt: skip
    assert list(finite.points()) == [
        {"pad": pad, **rate, "balance": balance}
        for pad, values in (("silence", [None]), ("repeat", [8000, 12_000, 16_000]))
        for rate in [{} if value is None else {"sample_rate": value} for value in values]
        for balance in ("none", "focal")
    ]


def test_where_nothing_is_asked_the_fixed_values_hold(tmp_path: Path) -> None:
    rates = {**RATES, "values": [8000, 12_000, 16_000], "when": {"pad": "repeat"}}
    fixed = {"sample_rate": 2000, "n_fft": 128, "hop_length": 64}
    found = {
        (c.pad, c.sample_rate, c.n_fft, c.hop_length)
        for c in all_configs(space_of(tmp_path, {"pad": PADS, "sample_rate": rates}, fixed=fixed))
    }
    asked = {
        ("repeat", 8000, 256, 128),
        ("repeat", 12_000, 512, 256),
        ("repeat", 16_000, 1024, 512),
    }
    assert found == {("silence", 2000, 128, 64)} | asked


def test_text_moves_with_text_and_null_with_numbers(tmp_path: Path) -> None:
    along = {"crop": ["start", "random"], "f_max": [None, 1000]}
    space = space_of(tmp_path, {"pad": {**PADS, "with": along}})
    found = {c.pad: (c.crop, c.f_max) for c in all_configs(space)}
    assert found == {"silence": ("start", None), "repeat": ("random", 1000.0)}


def test_a_parameter_is_asked_for_where_its_condition_holds(tmp_path: Path) -> None:
    space = space_of(
        tmp_path,
        {"time_shift": {**SHIFT, "when": {"pad": "repeat"}}, "pad": PADS},  # in this order
        fixed={"time_shift": 0.2},
    )
    assert list(space.parameters) == ["pad", "time_shift"]
    study = new_study()
    asked = {"silence": set[bool](), "repeat": set[bool]()}
    for _ in range(30):
        trial = study.ask()
        config = space.suggest(trial)
        asked[config.pad].add("time_shift" in trial.params)
        assert config.time_shift == trial.params.get("time_shift", 0.2)
        assert space.values(config) == {"pad": config.pad, "time_shift": config.time_shift}
    assert asked == {"silence": {False}, "repeat": {True}}


def test_all_conditions_must_hold_and_may_depend_on_each_other(tmp_path: Path) -> None:
    space = space_of(
        tmp_path,
        {
            "dropout": {**SHIFT, "when": {"width": [8, 16], "batch_size": 32}},
            "batch_size": {"type": "ordinal", "values": [16, 32, 64], "when": {"pad": "repeat"}},
            "width": {"type": "int", "low": 8, "high": 32, "step": 8},
            "pad": PADS,
        },
        fixed={"batch_size": 32},
    )
    assert list(space.parameters) == ["width", "pad", "batch_size", "dropout"]
    study = new_study()
    seen = set()
    for _ in range(200):
        trial = study.ask()
        config = space.suggest(trial)
        assert ("batch_size_index" in trial.params) == (config.pad == "repeat")
        # Where the batch is not searched it has the base config's 32, which counts.
        holds = config.width in (8, 16) and config.batch_size == 32
        assert ("dropout" in trial.params) == holds
        seen.add((config.pad, holds))
    assert len(seen) == 4


def test_the_baseline_has_active_parameters_only(tmp_path: Path) -> None:
    asked = {"time_shift": {**SHIFT, "when": {"pad": "repeat"}}, "pad": PADS}
    space = space_of(tmp_path, asked, preset="notebook")
    assert space.baseline_params() == {"pad": "silence"}
    assert space.baseline() == space.base
    space = space_of(tmp_path, asked)
    assert space.baseline_params() == {"pad": "repeat", "time_shift": 0.5}  # moved from 0.4
    study = new_study()
    study.enqueue_trial(space.baseline_params())
    assert space.suggest(study.ask()) == space.baseline()


def test_front_ends_follow_conditions(tmp_path: Path) -> None:
    """A rate above 4 kHz needs an open band: 3 bands and 3 rates are 5 front ends, not 9."""
    bands = {"type": "categorical", "values": [1000.0, 2000.0, None]}
    asked = {"sample_rate": {**RATES, "when": {"f_max": None}}, "f_max": bands}
    space = space_of(tmp_path, asked)
    ends = {(f.sample_rate, f.n_fft, f.f_max) for f in space.front_ends()}
    open_ends = {(4000, 256, 2000.0), (8000, 512, 4000.0), (16_000, 1024, 8000.0)}
    assert ends == {(4000, 256, 1000.0), *open_ends}
    assert set(space.front_ends()) == {c.front_end for c in all_configs(space)}


def test_a_condition_keeps_out_what_does_not_fit(tmp_path: Path) -> None:
    asked = {
        "sample_rate": {"type": "ordinal", "values": [2000, 4000]},
        "f_max": {"type": "categorical", "values": [1000.0, 2000.0]},
    }
    with pytest.raises(UserError) as caught:
        space_of(tmp_path, asked)
    assert (
        "f_max 2000 Hz is above half the sample_rate 2000: at most 1000. A trial may have "
        "sample_rate 2000, f_max 2000.0: `with:` moves fields together, `when:`"
        in str(caught.value)
    )
    asked["f_max"]["when"] = {"sample_rate": 4000}
    space = space_of(tmp_path, asked)
    assert len(space.front_ends()) == 3  # 2 kHz has the base config's f_max: half of it
    # Micro-batches that move with the batch are never above it.
    batches = {"type": "ordinal", "values": [8, 32], "with": {"micro_batch": [None, 16]}}
    assert {c.micro_batch for c in all_configs(space_of(tmp_path, {"batch_size": batches}))} == {
        None,
        16,
    }


@pytest.mark.parametrize("condition", [{"batch_size": 64}, {"batch_size": [32, 64]}])
def test_a_micro_batch_for_large_batches(tmp_path: Path, condition: dict[str, Any]) -> None:
    micro = {"type": "ordinal", "values": [16, 32], "when": condition}
    for batches in (
        {"type": "ordinal", "values": [8, 32, 64]},
        {"type": "int", "low": 8, "high": 64},
    ):
        space = space_of(tmp_path, {"micro_batch": micro, "batch_size": batches})
        for config in all_configs(space):
            assert config.micro_batch is None or config.batch_size in (32, 64)
    with pytest.raises(UserError, match="micro_batch 16 is above batch_size 8"):
        space_of(
            tmp_path, {"micro_batch": {**micro, "when": {"batch_size": 8}}, "batch_size": batches}
        )


@pytest.mark.parametrize("batch", [32, 48])
def test_a_range_of_micro_batches_is_judged_by_its_ends(tmp_path: Path, batch: int) -> None:
    asked = {
        "micro_batch": {"type": "int", "low": 2, "high": 40, "when": {"pad": "repeat"}},
        "pad": PADS,
    }
    if batch == 48:
        assert space_of(tmp_path, asked, fixed={"batch_size": batch}).baseline().micro_batch == 40
    else:
        with pytest.raises(UserError, match="micro_batch 40 is above batch_size 32"):
            space_of(tmp_path, asked, fixed={"batch_size": batch})


def test_a_condition_on_what_another_keeps(tmp_path: Path) -> None:
    """The batch is 32, the base config's, just where it is not searched."""
    space = space_of(
        tmp_path,
        {
            "depth": {"type": "int", "low": 5, "high": 6, "when": {"batch_size": 32}},
            "batch_size": {"type": "ordinal", "values": [16, 64], "when": {"pad": "repeat"}},
            "pad": PADS,
        },
    )
    found = {(c.pad, c.batch_size, c.depth) for c in all_configs(space)}
    silent = {("silence", 32, 5), ("silence", 32, 6)}
    assert found == {("repeat", 16, 4), ("repeat", 64, 4)} | silent


def test_what_older_searches_hold_of_a_parameter(tmp_path: Path) -> None:
    """A search made before `when` and `with` goes on: its study holds these very dumps."""
    space = space_of(
        tmp_path,
        {
            "lr": {"type": "float", "low": 1e-3, "high": 1e-2, "log": True},
            "width": {"type": "int", "low": 4, "high": 8},
            "n_mels": {"type": "ordinal", "values": [32, 48]},
            "pad": {**PADS, "when": {"width": [4, 5]}, "with": {"crop": ["start", "random"]}},
        },
    )
    assert {name: p.model_dump() for name, p in space.parameters.items()} == {
        "lr": {"log": True, "type": "float", "low": 1e-3, "high": 1e-2, "step": None},
        "width": {"log": False, "type": "int", "low": 4, "high": 8, "step": None},
        "n_mels": {"type": "ordinal", "values": [32, 48]},
        "pad": {
            "type": "categorical",
            "values": ["silence", "repeat"],
            "when": {"width": [4, 5]},
            "with": {"crop": ["start", "random"]},
        },
    }


def when(condition: Any, **more: Any) -> dict[str, Any]:
    return {"pad": {**PADS, "when": condition}, **more}


def along(fields: Any, **more: Any) -> dict[str, Any]:
    return {"sample_rate": {"type": "ordinal", "values": [4000, 8000], "with": fields}, **more}


WIDTH = {"type": "int", "low": 8, "high": 32, "step": 8}
MISTAKES: list[tuple[dict[str, Any], str]] = [
    (when({"widht": 8}, width=WIDTH), "pad: when: unknown field 'widht': did you mean 'width'?"),
    (when({"balance": "none"}, width=WIDTH), "pad: when: 'balance' is not searched: known: pad"),
    (when({"time_shift": 0.5}, time_shift=SHIFT), "pad: when: 'time_shift' is a float: only int"),
    (when({"width": 12}, width=WIDTH), "pad: when: width 12 is not among 8 to 32"),
    (when({"width": [8, 64]}, width=WIDTH), "pad: when: width 64 is not among 8 to 32"),
    (when({"width": 8.0}, width=WIDTH), "pad: when: width 8.0 is not among 8 to 32"),
    (when({"width": []}, width=WIDTH), "pad: when.width: "),
    (when(["width"], width=WIDTH), "pad: when: "),
    (when({"width": {"low": 8}}, width=WIDTH), "pad: when.width: "),
    (when({1: 8}, width=WIDTH), "pad: when.1: "),
    (
        when({"crop": "rendom"}, crop={"type": "categorical", "values": ["start", "random"]}),
        "pad: when: crop is never 'rendom': did you mean 'random'?",
    ),
    (when({"pad": "repeat"}), "pad: when: a condition depends on itself: pad → pad"),
    (
        when({"width": 8}, width={**WIDTH, "when": {"pad": "repeat"}}),
        "pad: when: a condition depends on itself: pad → width → pad",
    ),
    (
        when({"n_fft": 256}, **along({"n_fft": [256, 512]})),
        "pad: when: 'n_fft' moves with 'sample_rate': name that instead",
    ),
    (along({"n_fft": [256]}), "sample_rate: with 'n_fft': 1 values beside 2 in 'values'"),
    (along({"n_fft": 256}), "sample_rate: with.n_fft: "),
    (along([256]), "sample_rate: with: "),
    (along({"n_ftt": [1, 2]}), "sample_rate: with: unknown field 'n_ftt': did you mean 'n_fft'?"),
    (along({"n\nfft": [1, 2]}), "sample_rate: with: unknown field 'n\\nfft'"),
    (along({"seed": [1, 2]}), "sample_rate: with: 'seed' is not searched: give --seed instead"),
    (along({"n_fft": [256, 8]}), "n_fft: 8 is outside 16 to 16384"),
    (along({"n_fft": [256, "many"]}), "n_fft: 'many' is not a whole number"),
    (along({"lr": [0.1, 0.2]}), "sample_rate: with: 'lr' is in 'fixed' as well"),
    (along({"width": [8, 16]}, width=WIDTH), "sample_rate: with: 'width' is in 'parameters'"),
    (along({"sample_rate": [1, 2]}), "sample_rate: with: 'sample_rate' is in 'parameters'"),
    (
        along({"crop": ["start"] * 2}, pad={**PADS, "with": {"crop": ["start"] * 2}}),
        "pad: with: 'crop' moves with 'sample_rate' already",
    ),
    ({"width": {**WIDTH, "with": {"crop": ["start"]}}}, "width: unknown key 'with': known: high,"),
    ({"pad": {**PADS, "along": {}}}, "pad: unknown key 'along': known: values, when, with"),
]


@pytest.mark.parametrize(("parameters", "message"), MISTAKES)
def test_mistakes(tmp_path: Path, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        space_of(tmp_path, parameters, fixed={"lr": 0.001})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_too_much_to_look_at(tmp_path: Path) -> None:
    many = {"type": "int", "low": 1, "high": 200}
    with pytest.raises(UserError, match=r"hop_length × n_mels have over 20000 combinations"):
        space_of(tmp_path, {"hop_length": many, "n_mels": many})
    # Another field's values are told apart only where a condition does.
    rates = {**RATES, "when": {"batch_size": [7, 9]}}
    batches = {"type": "int", "low": 2, "high": 60_000}
    assert len(space_of(tmp_path, {"sample_rate": rates, "batch_size": batches}).front_ends()) == 3


VALUES: dict[str, list[Any]] = {
    "sample_rate": [2000, 4000, 8000],
    "n_fft": [128, 256],
    "hop_length": [64, 128],
    "n_mels": [24, 32],
    "f_min": [0.0, 50.0],
    "f_max": [900.0, 1000.0, None],
    "normalise": ["clip", "band", "pcen"],
    "pad": ["silence", "repeat"],
    "width": [8, 16, 24],
    "depth": [3, 4],
}


@st.composite
def entangled(draw: st.DrawFn) -> dict[str, dict[str, Any]]:
    """Parameters, some with a condition on a later one, some with a field that moves along."""
    fields = draw(st.permutations(sorted(VALUES)))
    searched, free = fields[: (n := draw(st.integers(2, 5)))], fields[n:]
    parameters: dict[str, dict[str, Any]] = {}
    for at, field in enumerate(searched):
        values = VALUES[field]
        numbers = all(isinstance(v, int | float) for v in values)
        made: dict[str, Any] = {"type": "ordinal" if numbers else "categorical", "values": values}
        if field == "depth":
            made = {"type": "int", "low": 3, "high": 4}
        elif draw(st.booleans()) and free:
            other, *free = free
            theirs = st.sampled_from(VALUES[other])
            made["with"] = {other: [draw(theirs) for _ in values]}
        if draw(st.booleans()) and at + 1 < len(searched):
            other = draw(st.sampled_from(searched[at + 1 :]))
            some = st.lists(st.sampled_from(VALUES[other]), min_size=1, max_size=2, unique=True)
            made["when"] = {other: draw(some)}
        parameters[field] = made
    return parameters


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(entangled())
def test_front_ends_are_those_of_all_trials(
    tmp_path: Path, parameters: dict[str, dict[str, Any]]
) -> None:
    """Held against Optuna's own way through every branch of the space."""
    space = space_of(tmp_path, parameters)
    configs = all_configs(space)
    assert set(space.front_ends()) == {c.front_end for c in configs}
    for config in configs:
        values = config.as_dict()
        for field, parameter in parameters.items():
            conditions = parameter.get("when", {}).items()
            if all(values[other] in options for other, options in conditions):
                moved = {
                    f: v[parameter["values"].index(values[field])]
                    for f, v in parameter.get("with", {}).items()
                }
            else:
                names = [field, *parameter.get("with", {})]
                moved = {f: getattr(space.base, f) for f in names}
            assert {f: values[f] for f in moved} == moved


def objective(trial: optuna.Trial, space: SearchSpace) -> float:
    config = space.suggest(trial)
    return (config.f_max is None) - config.time_shift


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_follows_conditions_in_silence(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = conditional_space(tmp_path)
    monkeypatch.setattr(logging.getLogger("optuna"), "handlers", [caplog.handler])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        study = optuna.create_study(direction="maximize", sampler=make_sampler(name, 7))
        study.enqueue_trial(space.baseline_params())
        running = [study.ask() for _ in range(3)]
        scores = [objective(trial, space) for trial in running]  # at once, as concurrent trials
        for trial, score in zip(running, scores, strict=True):
            study.tell(trial, score)
        study.optimize(lambda trial: objective(trial, space), n_trials=12)
    assert {("sample_rate_index" in t.params) for t in study.trials} == {True, False}
    said = [r.getMessage() for r in caplog.records]
    assert [s for s in said if "greenlet" not in s] == []  # which only makes GP faster
