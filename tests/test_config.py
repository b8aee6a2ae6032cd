"""The trial config: presets as documented, and every mistake as one line."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resp_tune.config import FIELDS, PRESETS, EncoderFrontEnd, FrontEnd, TrialConfig, coerce, preset
from resp_tune.errors import UserError


def test_the_notebook_is_the_articles() -> None:
    notebook = preset("notebook")
    assert notebook.front_end == FrontEnd(44_100, 1024, 512, 64, 0.0, 22_050.0, "db", "hann")
    assert notebook.clip_frames == 1719
    written = {
        "clip_seconds": 20.0,
        "top_db": 80.0,
        "channels": 2,
        "pad": "silence",
        "crop": "start",
        "normalise": "none",
        "time_shift": 0.4,
        "max_mask_pct": 0.1,
        "n_freq_masks": 1,
        "n_time_masks": 2,
        "augment_validation": True,
        "width": 8,
        "dropout": 0.25,
        "lr": 1e-3,
        "weight_decay": 1e-2,
        "batch_size": 128,
        "epochs": 20,
        "balance": "sampler_all",
        "precision": "float32",
    }
    assert {name: getattr(notebook, name) for name in written} == written


def test_the_baseline_is_the_default() -> None:
    assert preset("baseline") == TrialConfig()
    assert TrialConfig().front_end.f_max == 2000
    assert TrialConfig().clip_frames == 1 + 40_000 // 128
    assert not TrialConfig().augment_validation


def test_an_encoder_has_a_front_end_for_each_speed() -> None:
    assert TrialConfig().front_ends == (TrialConfig().front_end,)
    fields = {"encoder": "e.onnx", "encoder_layer": 3, "encoder_speed": [1, 4], "f_max": 3000}
    assert TrialConfig().replace(fields).front_ends == (
        EncoderFrontEnd("e.onnx", "3", 1, 3000.0, "kaiser"),
        EncoderFrontEnd("e.onnx", "3", 4, 3000.0, "kaiser"),
    )


@pytest.mark.parametrize("name", PRESETS)
def test_round_trip_through_json(name: str) -> None:
    config = preset(name)
    assert TrialConfig().replace(json.loads(json.dumps(config.as_dict()))) == config
    assert hash(config) == hash(dataclasses.replace(config))


def test_configs_and_front_ends_cannot_be_changed() -> None:
    for value, name in ((TrialConfig(), "lr"), (TrialConfig().front_end, "n_mels")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(value, name, 1)


def test_every_field_says_what_it_is() -> None:
    assert all(field.metadata["help"] for field in FIELDS.values())


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"clip_seconds": 10}, 10.0),
        ({"batch_size": 1e2}, 100),
        ({"f_max": 1500}, 1500.0),
        ({"micro_batch": 8.0}, 8),
        ({"micro_batch": None}, None),
        ({"encoder_layer": 108}, "108"),
        ({"encoder_speed": 2}, "2"),
        ({"encoder_speed": [1, 2, 4]}, "1+2+4"),
    ],
)
def test_whole_numbers_are_taken_either_way(given: dict[str, Any], kept: Any) -> None:
    (name,) = given
    value = getattr(TrialConfig().replace(given), name)
    assert value == kept
    assert type(value) is type(kept)


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"learning_rate": 1.0}, "unknown field 'learning_rate'"),
    ({"dropuot": 0.1}, "did you mean 'dropout'?"),
    ({"dropout": 0.96}, "dropout: 0.96 is outside 0 to 0.95"),
    ({"dropout": -0.1}, "outside"),
    ({"dropout": "high"}, "dropout: 'high' is not a number"),
    ({"dropout": True}, "dropout: true is not a number"),
    ({"dropout": None}, "dropout: null is not a number"),
    ({"lr": float("nan")}, "lr: nan is outside"),
    ({"lr": float("inf")}, "lr: inf is outside"),
    ({"epochs": 2.5}, "epochs: 2.5 is not a whole number"),
    ({"epochs": 0}, "epochs: 0 is outside"),
    ({"seed": -1}, "seed: -1 is outside"),
    ({"micro_batch": "all"}, "micro_batch: 'all' is not a whole number or null"),
    ({"pad": "zeros"}, "pad: 'zeros' is not one of silence, repeat"),
    ({"channels": 3}, "channels: 3 is outside 1 to 2"),
    ({"augment_validation": 1}, "augment_validation: 1 is not true or false"),
    ({"f_max": 2001.0}, "f_max 2001 Hz is above half the sample_rate 4000: at most 2000"),
    ({"f_min": 2000.0}, "f_min 2000 Hz is not below f_max 2000"),
    ({"f_min": 600.0, "f_max": 500.0}, "f_min 600 Hz is not below f_max 500"),
    ({"micro_batch": 64}, "micro_batch 64 is above batch_size 32"),
    ({"encoder": " "}, "encoder: ' ' is empty: give the path of its file, or none"),
    ({"encoder_layer": ""}, "encoder_layer: '' is empty: give last, a name or an index"),
    ({"encoder_layer": 1.5}, "encoder_layer: 1.5 is not text: give last, a name or an index"),
    ({"encoder": None}, "encoder: null is not text: give the path of its file, or none"),
    ({"encoder": False}, "encoder: false is not text: give the path of its file, or none"),
    ({"encoder_speed": 3}, "encoder_speed: '3' is not one of 1, 2, 4, 1+2, 1+4, 2+4, 1+2+4"),
    ({"encoder_speed": [2, 1]}, "encoder_speed: '2+1' is not one of"),
    ({"encoder_speed": []}, "encoder_speed: '' is not one of"),
    ({"encoder_speed": [[1]]}, "encoder_speed: [[1]] is not one of"),
    ({"head_c": 0.0}, "head_c: 0.0 is outside 1e-07 to 10000"),
]


@pytest.mark.parametrize(("given", "message"), MISTAKES)
def test_mistakes_are_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        TrialConfig().replace(given)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_preset() -> None:
    with pytest.raises(UserError, match="unknown preset 'notebok': did you mean 'notebook'"):
        preset("notebok")


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.just(10**400),  # YAML and JSON hold it, a float does not
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(), max_size=2),
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(FIELDS)), ANYTHING, max_size=3))
def test_any_value_gives_a_config_or_a_line(values: dict[str, Any]) -> None:
    message = ""
    try:
        config = TrialConfig().replace(values)
    except UserError as error:
        message = str(error)
    if message:
        assert len(message.splitlines()) == 1
    else:
        assert all(getattr(config, n) == coerce(n, value) for n, value in values.items())
        assert config.clip_frames > 0


def test_needs_the_standard_library_only() -> None:
    """Measured, besides what test_imports reads from the sources."""
    code = (
        "import sys; before = set(sys.modules); import resp_tune.config;"
        "new = {m.split('.')[0] for m in set(sys.modules) - before};"
        "print(*sorted(new - set(sys.stdlib_module_names)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["resp_tune"]
