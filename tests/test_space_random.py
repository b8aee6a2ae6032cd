"""Search spaces that nobody would write: random valid ones are never left, garbage is a line."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.spaces import new_study, space_of

from resp_tune.config import TrialConfig
from resp_tune.errors import UserError
from resp_tune.space.search_space import load_space

RANGES: dict[str, tuple[float, float]] = {
    "time_shift": (0.0, 1.0),
    "max_mask_pct": (0.0, 1.0),
    "dropout": (0.0, 0.95),
    "lr": (1e-6, 9.0),
    "weight_decay": (0.0, 10.0),
    "top_db": (1.0, 200.0),
    "clip_seconds": (0.5, 60.0),
    "mixup": (0.0, 1.0),
    "ema": (0.0, 0.9999),
}
WHOLE_RANGES = {
    "n_freq_masks": (0, 10),
    "width": (1, 256),
    "batch_size": (2, 500),
    "n_mels": (8, 99),
}
CHOICES: dict[str, list[Any]] = {
    "pad": ["silence", "repeat"],
    "crop": ["start", "random"],
    "normalise": ["none", "clip", "band", "pcen"],
    "balance": ["none", "sampler", "sampler_all", "patient_sampler", "focal"],
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


# Where low + n · step has more digits than a float, Optuna ends a step early, and says so.
@pytest.mark.filterwarnings("ignore:The distribution is specified by:UserWarning")
@pytest.mark.filterwarnings("ignore:The value .* is out of the range:UserWarning")
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
                st.sampled_from(["when", "with"]),
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


CROP = {"type": "categorical", "values": ["start", "random"]}
WIDTH = {"type": "int", "low": 4, "high": 8}


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
@given(
    st.one_of(
        GARBAGE,
        GARBAGE.map(lambda g: {"parameters": {"lr": g}}),
        GARBAGE.map(lambda g: {"parameters": {"crop": {**CROP, "when": g}, "width": WIDTH}}),
        GARBAGE.map(lambda g: {"parameters": {"crop": {**CROP, "with": g}, "width": WIDTH}}),
    )
)
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
    "a list in itself": "parameters: {width: {type: ordinal, values: &a [1, *a]}}",
    "fields in themselves": "parameters: {crop: {type: categorical, values: [start, random], "
    "with: &a {width: *a}}}",
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
