"""Search spaces: the shipped ones, what the study makes of them, and every mistake as a line."""

from __future__ import annotations

import itertools
import math
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from resp_tune.config import FIELDS, TrialConfig, preset
from resp_tune.errors import UserError
from resp_tune.features.logmel import check_filters
from resp_tune.tuning.samplers import SAMPLERS, blind_to, make_sampler
from resp_tune.tuning.space import LARGEST_FILE, SearchSpace, load_space

SHIPPED = sorted((Path(__file__).parent.parent / "search_spaces").glob("*.yaml"))


def new_study(seed: int = 0) -> optuna.Study:
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))


def space_of(folder: Path, parameters: dict[str, Any], **more: Any) -> SearchSpace:
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump({"parameters": parameters, **more}))
    return load_space(str(path))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_a_shipped_space(path: Path) -> None:
    """Loads from anywhere, starts at its preset, and has no front end with an empty filter."""
    space = load_space(str(path))
    assert space == load_space(f"search_spaces/{path.name}") == load_space(path.name)
    assert space.name == path.stem
    assert space.description
    assert space.baseline() == space.base
    for front_end in space.front_ends():
        check_filters(front_end)
    study = new_study()
    asked = set()
    for _ in range(30):
        config = space.suggest(study.ask())
        asked.add(config.front_end)
        unsearched = {n: getattr(space.base, n) for n in FIELDS if n not in space.parameters}
        assert config == space.base.replace(space.values(config))
        assert all(getattr(config, name) == value for name, value in unsearched.items())
    assert asked <= set(space.front_ends())


def test_presets_of_the_shipped_spaces() -> None:
    assert load_space("default.yaml").baseline() == preset("baseline")
    assert load_space("notebook.yaml").baseline() == preset("notebook")
    assert {"max_mask_pct", "n_mels", "dropout", "lr"} <= set(
        load_space("notebook.yaml").parameters
    )


def test_a_shipped_space_is_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_space("search_spaces/default.yaml").name == "default"
    (tmp_path / "default.yaml").write_text("parameters: {lr: {type: float, low: 0.1, high: 0.2}}")
    assert list(load_space("default.yaml").parameters) == ["lr"]  # a file that is there goes first


def test_what_the_study_is_told(tmp_path: Path) -> None:
    """Order and scale are kept: not everything is a choice of labels."""
    space = space_of(
        tmp_path,
        {
            "n_mels": {"type": "ordinal", "values": [32, 48, 64, 80]},
            "batch_size": {"type": "ordinal", "values": [16, 32, 64]},
            "clip_seconds": {"type": "ordinal", "values": [5.0, 10.0]},
            "lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
            "dropout": {"type": "float", "low": 0.0, "high": 0.5, "step": 0.1},
            "time_shift": {"type": "float", "low": 0.0, "high": 1.0},
            "width": {"type": "int", "low": 4, "high": 64, "log": True},
            "n_time_masks": {"type": "int", "low": 0, "high": 4, "step": 2},
            "pad": {"type": "categorical", "values": ["silence", "repeat"]},
        },
    )
    trial = new_study().ask()
    space.suggest(trial)
    assert trial.distributions == {
        "n_mels": IntDistribution(32, 80, step=16),
        "batch_size_index": IntDistribution(0, 2),
        "clip_seconds_index": IntDistribution(0, 1),
        "lr": FloatDistribution(1e-4, 1e-2, log=True),
        "dropout": FloatDistribution(0.0, 0.5, step=0.1),
        "time_shift": FloatDistribution(0.0, 1.0),
        "width": IntDistribution(4, 64, log=True),
        "n_time_masks": IntDistribution(0, 4, step=2),
        "pad": CategoricalDistribution(("silence", "repeat")),
    }


def test_the_baseline_is_moved_into_the_space(tmp_path: Path) -> None:
    space = space_of(
        tmp_path,
        {
            "n_mels": {"type": "ordinal", "values": [16, 40, 60]},
            "lr": {"type": "float", "low": 5e-3, "high": 1e-2},
            "width": {"type": "int", "low": 1, "high": 10, "step": 4},
            "pad": {"type": "categorical", "values": ["silence", "repeat"]},
        },
        fixed={"dropout": 0},
    )
    moved = {"n_mels": 40, "lr": 5e-3, "width": 9, "pad": "repeat"}
    assert space.values(space.baseline()) == moved
    assert space.baseline().dropout == 0.0


def test_a_field_whose_default_is_null(tmp_path: Path) -> None:
    space = space_of(tmp_path, {"f_max": {"type": "ordinal", "values": [1000.0, 1500.0, 2000.0]}})
    assert space.baseline().f_max in (1000.0, 1500.0, 2000.0)


def test_numbers_as_people_write_them(tmp_path: Path) -> None:
    """YAML 1.1 reads 1e-3 as text, and 10 for a float field as a whole number."""
    path = tmp_path / "s.yaml"
    path.write_text("parameters: {lr: {type: float, low: 1e-3, high: 1E-2, log: true}}")
    low_high = load_space(str(path)).parameters["lr"].ends()
    assert low_high == (1e-3, 1e-2)
    space = space_of(tmp_path, {"clip_seconds": {"type": "ordinal", "values": [5, 10]}})
    value = space.suggest(new_study().ask()).clip_seconds
    assert isinstance(value, float)


LR = {"type": "float", "low": 1e-3, "high": 1e-2}
WRONG_PARAMETERS: list[tuple[dict[str, Any], str]] = [
    ({"learning_rate": LR}, "unknown field 'learning_rate'"),
    ({"dropuot": LR}, "unknown field 'dropuot': did you mean 'dropout'?"),
    ({"seed": LR}, "'seed' is not searched: give --seed instead"),
    ({"epochs": LR}, "'epochs' is not searched: give --epochs instead"),
    ({"lr": {**LR, "type": "flaot"}}, "lr: must be {type: float, int, ordinal or categorical"),
    ({"lr": {"low": 1e-3, "high": 1e-2}}, "lr: must be {type: float, int, ordinal or"),
    ({"lr": {**LR, "type": ["float"]}}, "lr: must be {type: float, int, ordinal or"),
    ({"lr": 0.1}, "lr: must be {type: float, int, ordinal or"),
    ({"lr": None}, "lr: must be {type: float, int, ordinal or"),
    ({"lr": [1e-3, 1e-2]}, "lr: must be {type: float, int, ordinal or"),
    ({"lr": {**LR, "logs": True}}, "unknown key 'logs': did you mean 'log'?"),
    ({"lr": {"type": "ordinal", "value": [1, 2]}}, "lr: "),
    ({"lr": {**LR, "low": 0.1}}, "low 0.1 is not below high 0.01"),
    ({"lr": {**LR, "low": 0.01}}, "low 0.01 is not below high 0.01"),
    ({"lr": {**LR, "low": "small"}}, "lr: low: "),
    ({"lr": {**LR, "low": True}}, "lr: low: "),
    ({"lr": {**LR, "high": float("nan")}}, "lr: high: "),
    ({"lr": {**LR, "high": float("inf")}}, "lr: high: "),
    ({"lr": {"type": "float", "high": 1e-2}}, "lr: low: Field required"),
    ({"lr": {**LR, "log": "yes"}}, "lr: log: "),
    ({"lr": {**LR, "high": 11.0}}, "lr: 11.0 is outside"),
    ({"lr": {**LR, "low": 0.0}}, "lr: 0.0 is outside"),
    ({"dropout": {**LR, "low": 0, "log": True}}, "low 0 must be above 0 when log is true"),
    ({"lr": {**LR, "log": True, "step": 1e-3}}, "log and step cannot be combined"),
    ({"lr": {**LR, "step": 0.0}}, "step 0 is not above 0"),
    ({"width": {"type": "int", "low": 1.5, "high": 3}}, "width: low: "),
    ({"width": {"type": "float", "low": 4.0, "high": 8.0}}, "width: type float does not fit"),
    ({"width": {"type": "int", "low": 0, "high": 8}}, "width: 0 is outside 1 to 256"),
    ({"n_mels": {"type": "ordinal", "values": [32]}}, "n_mels: values: "),
    ({"n_mels": {"type": "ordinal", "values": [64, 32]}}, "values must ascend, 32 follows 64"),
    ({"n_mels": {"type": "ordinal", "values": [32, 32]}}, "values must ascend, 32 follows 32"),
    ({"width": {"type": "ordinal", "values": [8, "16"]}}, "width: values: "),
    ({"width": {"type": "ordinal", "values": [8, 16.5]}}, "width: 16.5 is not int"),
    (
        {"pad": {"type": "categorical", "values": ["silence", "zeros"]}},
        "pad: 'zeros' is not one of",
    ),
    ({"pad": {"type": "categorical", "values": ["silence", "silence"]}}, "a value is given twice"),
    ({"pad": {"type": "categorical", "values": "silence"}}, "pad: values: "),
    ({}, "'parameters' must be a mapping of field to {type: …}, with at least one"),
]


@pytest.mark.parametrize(("parameters", "message"), WRONG_PARAMETERS)
def test_mistakes_in_parameters(tmp_path: Path, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        space_of(tmp_path, parameters)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"space '{tmp_path}/space.yaml': ")
    assert "\n" not in str(caught.value)


WRONG_FILES = {
    "": "must be a mapping with 'parameters'",
    "- a\n- b": "must be a mapping with 'parameters'",
    "just text": "must be a mapping with 'parameters'",
    "parameters: [lr]": "'parameters' must be a mapping",
    "description: nothing": "'parameters' must be a mapping",
    "parametres: {lr: 1}": "unknown key 'parametres': did you mean 'parameters'?",
    "preset: notebok\nparameters: {}": "unknown preset 'notebok': did you mean 'notebook'?",
    "preset: [a]\nparameters: {}": "unknown preset",
    "fixed: [lr]\nparameters: {}": "'fixed' must be a mapping of field to value",
    "fixed: {drop: 1}\nparameters: {lr: 1}": "unknown field 'drop'",
    "fixed: {dropout: 1}\nparameters: {lr: 1}": "dropout: 1.0 is outside 0 to 0.95",
    "fixed: {lr: 0.01}\nparameters: {lr: {type: float, low: 0.1, high: 1}}": (
        "'lr' stands in both 'fixed' and 'parameters'"
    ),
    "parameters: {lr: {type: float, low: 0.1, high: 1}": "is not YAML: ",
    "a: b: c": "is not YAML: ",
    "parameters: !!python/object/apply:os.getcwd []": "is not YAML: could not determine a con",
    "a: &a [*a, *b]": "is not YAML: ",
    "\tparameters: 1": "is not YAML: ",
}


@pytest.mark.parametrize("content", WRONG_FILES)
def test_mistakes_in_files(tmp_path: Path, content: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        load_space(str(path))
    assert WRONG_FILES[content] in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'defualt.yaml' is not a file: did you mean 'default"):
        load_space("defualt.yaml")
    with pytest.raises(UserError, match="is not a file"):
        load_space(str(tmp_path))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UserError, match=r"binary.yaml' (cannot be read|is not YAML)"):
        load_space(str(tmp_path / "binary.yaml"))
    (tmp_path / "deep.yaml").write_text("[" * 50_000)
    with pytest.raises(UserError, match=r"deep.yaml' cannot be read"):
        load_space(str(tmp_path / "deep.yaml"))
    (tmp_path / "large.yaml").write_text("#" * (LARGEST_FILE + 1))
    with pytest.raises(UserError, match="has over 100000 bytes"):
        load_space(str(tmp_path / "large.yaml"))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"f_min": {"type": "float", "low": 0.0, "high": 100.0}}, "f_min: type float has too many"),
        ({"n_mels": {"type": "int", "low": 1, "high": 400}}, "n_mels: type int has too many"),
        ({"sample_rate": {"type": "ordinal", "values": [4000, 500_000]}}, "sample_rate: 500000"),
        (
            {
                "n_mels": {"type": "int", "low": 16, "high": 48},
                "hop_length": {"type": "ordinal", "values": [32, 64, 96, 128, 160, 192, 224, 256]},
            },
            "hop_length × n_mels give 264 front ends",
        ),
        (
            {
                "sample_rate": {"type": "ordinal", "values": [2000, 4000]},
                "f_max": {"type": "categorical", "values": [1000.0, 2000.0]},
            },
            "f_max 2000 Hz is above half the sample_rate 2000",
        ),
    ],
)
def test_front_ends_that_cannot_be(
    tmp_path: Path, parameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        space_of(tmp_path, parameters).front_ends()
    assert message in str(caught.value)


def test_front_ends_are_listed_once(tmp_path: Path) -> None:
    space = space_of(
        tmp_path,
        {
            "n_mels": {"type": "ordinal", "values": [32, 48]},
            "f_max": {"type": "categorical", "values": [None, 2000.0, 1000.0]},
            "lr": LR,
        },
    )
    base = preset("baseline")
    expected = {
        base.replace({"n_mels": n, "f_max": f}).front_end
        for n, f in itertools.product([32, 48], [2000.0, 1000.0])
    }
    assert len(space.front_ends()) == 4  # null and 2000 Hz are the same
    assert set(space.front_ends()) == expected


# --- Random spaces

RANGES: dict[str, tuple[float, float]] = {
    "time_shift": (0.0, 1.0),
    "max_mask_pct": (0.0, 1.0),
    "dropout": (0.0, 0.95),
    "lr": (1e-6, 9.0),
    "weight_decay": (0.0, 10.0),
    "top_db": (1.0, 200.0),
    "clip_seconds": (0.5, 60.0),
}
WHOLE_RANGES = {
    "n_freq_masks": (0, 10),
    "width": (1, 256),
    "batch_size": (1, 500),
    "n_mels": (8, 99),
}
CHOICES: dict[str, list[Any]] = {
    "pad": ["silence", "repeat"],
    "crop": ["start", "random"],
    "normalise": ["none", "clip"],
    "balance": ["none", "sampler", "sampler_all"],
    "augment_validation": [True, False],
    "channels": [1, 2],
}


@st.composite
def parameter(draw: st.DrawFn, field: str) -> dict[str, Any]:
    if field in CHOICES:
        values = draw(st.permutations(CHOICES[field]))
        return {"type": "categorical", "values": values[: draw(st.integers(2, len(values)))]}
    whole = field in WHOLE_RANGES
    least, most = WHOLE_RANGES[field] if whole else RANGES[field]
    numbers: st.SearchStrategy[Any] = (
        st.integers(int(least), int(most))
        if whole
        else st.floats(least, most, allow_subnormal=False)
    )
    if draw(st.booleans()):
        values = draw(st.lists(numbers, min_size=2, max_size=6, unique=True))
        return {"type": "ordinal", "values": sorted(values)}
    low, high = sorted(draw(st.lists(numbers, min_size=2, max_size=2, unique=True)))
    made: dict[str, Any] = {"type": "int" if whole else "float", "low": low, "high": high}
    extra = draw(st.sampled_from(["", "log", "step"]))
    if extra == "log" and low > 0:
        made["log"] = True
    if extra == "step":
        made["step"] = max(1, (high - low) // 3) if whole else (high - low) / 3
    return made


@st.composite
def parameters(draw: st.DrawFn) -> dict[str, dict[str, Any]]:
    known = sorted({**RANGES, **WHOLE_RANGES, **CHOICES})
    fields = draw(st.lists(st.sampled_from(known), min_size=1, max_size=5, unique=True))
    return {field: draw(parameter(field)) for field in fields}


def inside(value: Any, given_: dict[str, Any]) -> bool:
    if "values" in given_:
        return value in given_["values"]
    if not given_["low"] <= value <= given_["high"]:
        return False
    steps = (value - given_["low"]) / given_.get("step", 1 if given_["type"] == "int" else math.inf)
    return "step" not in given_ or math.isclose(steps, round(steps), abs_tol=1e-6)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(parameters(), st.integers(0, 1000))
def test_random_spaces_are_never_left(
    tmp_path: Path, asked: dict[str, dict[str, Any]], seed: int
) -> None:
    space = space_of(tmp_path, asked)
    study = new_study(seed)
    study.enqueue_trial(space.baseline_params())
    configs = [space.suggest(study.ask()) for _ in range(5)]
    assert configs[0] == space.baseline()
    for config in configs:
        for field, value in space.values(config).items():
            assert inside(value, asked[field]), (field, value)
    stored = [t.params for t in study.trials]
    assert len(stored) == 5
    # What the study holds is enough to get the config again, as a continued search does.
    for trial, config in zip(study.trials, configs, strict=True):
        assert space.suggest(optuna.trial.FixedTrial(trial.params)) == config  # type: ignore[arg-type]  # has the same methods


GARBAGE = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.dates(),
        st.text(max_size=8),
        st.sampled_from(
            ["float", "int", "ordinal", "categorical", "lr", "n_mels", "1e-3", "1e999"]
        ),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(
                st.sampled_from(["type", "low", "high", "log", "step", "values", "lr", "width"]),
                st.sampled_from(["parameters", "fixed", "preset", "description"]),
                st.text(max_size=4),
                st.integers(0, 3),
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)


def only_a_line(path: Path) -> None:
    try:
        space = load_space(str(path))
        space.front_ends()
        space.baseline()
    except UserError as error:
        message = str(error)
    else:
        message = ""
        assert isinstance(space.base, TrialConfig)
    assert "\n" not in message


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.one_of(GARBAGE, GARBAGE.map(lambda g: {"parameters": {"lr": g}})))
def test_garbage_is_a_line_or_a_space(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump(content, allow_unicode=True), encoding="utf-8")
    only_a_line(path)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.one_of(st.binary(max_size=60), st.text(":-[]{}&*!|>\n\t 'a#?%@1e.", max_size=60)))
def test_any_bytes_are_a_line(tmp_path: Path, content: bytes | str) -> None:
    path = tmp_path / "space.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    only_a_line(path)


AWKWARD = {
    "a day that is not": "parameters: {lr: {type: float, low: 2001-99-99, high: 1}}",
    "a number of 5000 digits": f"parameters: {{lr: {{type: float, low: {'9' * 5000}, high: 1}}}}",
    "a number of 400 digits": f"parameters: {{lr: {{type: float, low: 1, high: {'9' * 400}}}}}",
    "an end of 400 digits": f"parameters: {{width: {{type: int, low: 1, high: {'9' * 400}}}}}",
    "a fixed number of 400 digits": f"fixed: {{lr: {'9' * 400}}}\nparameters: {{width: 1}}",
    "a key of two lines": 'parameters: {"l\\nr": {type: float}}',
}


@pytest.mark.parametrize("what", AWKWARD)
def test_what_yaml_allows_and_numbers_do_not(tmp_path: Path, what: str) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(AWKWARD[what])
    with pytest.raises(UserError) as caught:
        load_space(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "asked",
    [
        {
            "parameters": {"batch_size": {"type": "ordinal", "values": [8, 32]}},
            "fixed": {"micro_batch": 16},
        },
        {
            "parameters": {
                "batch_size": {"type": "ordinal", "values": [16, 32]},
                "micro_batch": {"type": "ordinal", "values": [16, 32]},
            }
        },
    ],
    ids=["fixed", "searched"],
)
def test_micro_batches_above_the_batch(tmp_path: Path, asked: dict[str, Any]) -> None:
    """Refused when the space is read, or cut to the batch: never in the midst of a search."""
    try:
        space = space_of(tmp_path, **asked)
    except UserError as error:
        refused = "micro_batch" in str(error)
    else:
        study = new_study()
        configs = [space.suggest(study.ask()) for _ in range(20)]
        refused = all((c.micro_batch or 0) <= c.batch_size for c in configs)
    assert refused


# --- Samplers


def objective(trial: optuna.Trial, space: SearchSpace) -> float:
    config = space.suggest(trial)
    return -((math.log10(config.lr) + 2.5) ** 2) - (config.dropout - 0.2) ** 2


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_runs_over_the_default_space(name: str) -> None:
    space = load_space("default.yaml")
    runs = []
    for _ in range(2):
        study = optuna.create_study(direction="maximize", sampler=make_sampler(name, 7))
        study.enqueue_trial(space.baseline_params())
        study.optimize(lambda trial: objective(trial, space), n_trials=15)
        assert [t.state.name for t in study.trials] == ["COMPLETE"] * 15
        runs.append([t.params for t in study.trials])
    assert runs[0] == runs[1]  # one after another and with one seed, a search can be repeated
    assert len({str(p) for p in runs[0]}) > 10
    other = optuna.create_study(sampler=make_sampler(name, 8))
    assert space.suggest(other.ask()) != space.suggest(
        optuna.trial.FixedTrial(runs[0][1])  # type: ignore[arg-type]  # has the same methods
    )


def test_fields_that_a_sampler_cannot_see(tmp_path: Path) -> None:
    space = space_of(
        tmp_path, {"lr": LR, "pad": {"type": "categorical", "values": ["silence", "repeat"]}}
    )
    assert blind_to("cmaes", space) == ["pad"]
    assert blind_to("tpe", space) == []
