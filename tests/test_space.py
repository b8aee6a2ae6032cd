"""Search spaces: the shipped ones, what the study makes of them, and every mistake as a line."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any, get_args

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from support.spaces import all_configs, new_study, space_of

from resp_tune.common.yaml_files import MAX_BYTES
from resp_tune.config import FIELDS, Balance, EncoderFrontEnd, FrontEnd, preset
from resp_tune.data.sounds.waveforms import FLAT_TO
from resp_tune.errors import UserError
from resp_tune.features.logmel import check_filters
from resp_tune.space.search_space import ENCODER_FIELDS, HEAD_FIELDS, NETWORK_FIELDS, load_space

SHIPPED = sorted((Path(__file__).parent.parent / "search_spaces").glob("*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_a_shipped_space(path: Path) -> None:
    """Loads from anywhere, starts at its preset, and has no front end with an empty filter."""
    space = load_space(str(path))
    assert space == load_space(f"search_spaces/{path.name}") == load_space(path.name)
    assert space.name == path.stem
    moved = {
        "cycles": {"clip_seconds": 8.0},  # no cycle needs the preset's 10 s
        "wide": {"f_max": 1900.0},
        # The preset has the layer `last`, speed 1 alone, no PCA, and a weak penalty.
        "encoder": {"encoder_layer": "110", "encoder_speed": "1+2", "head_c": 5e-4, "pca": 128},
        "encoder_cycles": {"encoder_layer": "110"},
    }
    assert space.baseline() == space.base.replace(moved.get(path.stem, {}))
    for front_end in space.front_ends():
        if isinstance(front_end, FrontEnd):
            check_filters(front_end)
    study = new_study()
    asked = set()
    coupled = {f for p in space.parameters.values() for f in p.model_dump().get("with", {})}
    for _ in range(200):
        config = space.suggest(study.ask())
        asked.update(config.front_ends)
        free = {n: getattr(config, n) for n in (*space.parameters, *coupled)}
        assert config == space.base.replace(free)
    assert asked <= set(space.front_ends())
    seen = {n: {t.params[n] for t in study.trials if n in t.params} for n in study.trials[0].params}
    assert all(len(values) > 1 for values in seen.values())


# Issue 3, point 8: what must be a dimension of the wide space, with values that must be there.
WIDE: dict[str, tuple[Any, ...]] = {
    "clip_seconds": (5.0, 8.0, 10.0, 20.0),
    "f_min": (0.0, 50.0, 100.0),
    "f_max": (1000.0, 1500.0, 1900.0),
    "n_mels": (32, 48, 64),
    "normalise": ("clip", "recording", "band", "pcen"),
    "balance": tuple(o for o in get_args(Balance) if o != "sampler_all"),
    "mixup": (0.0, 1.0),
    "label_smoothing": (0.0, 0.2),
    "weight_decay": (1e-5, 1e-1),
    "width": (8, 16, 32),
    "depth": (3, 6),
    "ema": (0.0, 0.9, 0.99, 0.999),
}


def test_the_wide_space_has_the_ideas_of_the_reports() -> None:
    space = load_space("wide.yaml")
    for field, values in WIDE.items():
        assert set(values) <= set(space.parameters[field].values), field
    assert space.base.crop == "random"  # several crops of a recording in evaluation
    for f in space.front_ends():
        assert f.n_fft / f.sample_rate == 0.064
        assert f.hop_length / f.sample_rate == 0.032
    assert len(space.front_ends()) == 3 * 3 * 3 * 2  # f_max, f_min, n_mels, dB or PCEN


@pytest.mark.parametrize("name", ["default.yaml", "wide.yaml", "cycles.yaml"])
def test_no_band_shows_which_recordings_were_resampled(name: str) -> None:
    for front_end in load_space(name).front_ends():
        assert front_end.f_max <= FLAT_TO * front_end.sample_rate / 2
        assert front_end.sample_rate == 4000  # the lowest rate in ICBHI
        assert front_end.resampling == "kaiser"


def test_the_cycles_space_fits_the_cycles() -> None:
    space = load_space("cycles.yaml")
    assert {f.sample_rate for f in space.front_ends()} == {4000}
    assert all(f.hop_length * 2 == f.n_fft and f.n_fft <= 256 for f in space.front_ends())
    assert (space.base.pad, space.base.crop) == ("repeat", "random")
    ends = space.parameters["clip_seconds"].values
    assert (min(ends), max(ends)) == (4.0, 8.0)


def test_presets_of_the_shipped_spaces() -> None:
    assert load_space("default.yaml").baseline() == preset("baseline").replace({"f_max": 1900.0})
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


def test_layers_and_speeds_are_text(tmp_path: Path) -> None:
    """Whether they are numbers in YAML or not, also in conditions; an ordinal has their order."""
    space = space_of(
        tmp_path,
        {
            "encoder_layer": {"type": "ordinal", "values": [3, 1, "last"]},
            "encoder_speed": {"type": "categorical", "values": [1, "2+4"]},
            "pca": {"type": "ordinal", "values": [0, 8], "when": {"encoder_layer": [3]}},
        },
        fixed={"encoder": "e.onnx"},
    )
    assert space.baseline_params() == {"encoder_layer_index": 2, "encoder_speed": "1"}
    assert [p["encoder_layer_index"] for p in space.points() if "pca" in p] == [0] * 4
    assert {(f.layer, f.speed) for f in space.front_ends() if isinstance(f, EncoderFrontEnd)} == {
        (layer, speed) for layer in ("3", "1", "last") for speed in (1, 2, 4)
    }
    config = space.suggest(optuna.trial.FixedTrial({
        "encoder_layer_index": 0, "encoder_speed": "2+4", "pca": 8,
    }))  # fmt: skip
    assert (config.encoder_layer, config.encoder_speed, config.pca) == ("3", "2+4", 8)


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
    path.write_text(
        "fixed: {dropout: 1e-1}\nparameters: {weight_decay: {type: ordinal, values: [1e-4, 1.e-3]}}"
    )
    assert load_space(str(path)).base.dropout == 0.1
    assert load_space(str(path)).parameters["weight_decay"].values == [1e-4, 1e-3]


def test_steps_end_where_the_last_one_fits(tmp_path: Path) -> None:
    asked = {
        "dropout": {"type": "float", "low": 0.1, "high": 0.5, "step": 0.15},
        "width": {"type": "int", "low": 4, "high": 15, "step": 4},
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Optuna's
        space = space_of(tmp_path, asked, fixed={"lr": 0.01})
        configs = all_configs(space)
    assert sorted({c.dropout for c in configs}) == [0.1, 0.25, 0.4]
    assert sorted({c.width for c in configs}) == [4, 8, 12]


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
    ({"lr": {**LR, "step": 1e-300}}, "step 1e-300 is too small for 0.001 to 0.01"),
    ({"width": {"type": "int", "low": 1.5, "high": 3}}, "width: low: "),
    ({"width": {"type": "float", "low": 4.0, "high": 8.0}}, "width: type float does not fit"),
    ({"width": {"type": "int", "low": 0, "high": 8}}, "width: 0 is outside 1 to 256"),
    ({"n_mels": {"type": "ordinal", "values": [32]}}, "n_mels: values: "),
    ({"n_mels": {"type": "ordinal", "values": [64, 32]}}, "values must ascend, 32 follows 64"),
    ({"n_mels": {"type": "ordinal", "values": [32, 32]}}, "values must ascend, 32 follows 32"),
    ({"width": {"type": "ordinal", "values": [8, "16"]}}, "width: values: "),
    ({"width": {"type": "ordinal", "values": [8, 16.5]}}, "width: 16.5 is not a whole number"),
    ({"pad": {"type": "ordinal", "values": ["repeat", "repeat"]}}, "pad: a value is given twice"),
    ({"pca": {"type": "int", "low": 0, "high": 5}}, "pca: without an encoder it changes nothing"),
    (
        {
            "encoder": {"type": "categorical", "values": ["none", "e.onnx"]},
            "encoder_layer": {"type": "int", "low": 1, "high": 5},
        },
        "encoder_layer: type int does not",
    ),
    (
        {
            "encoder": {"type": "categorical", "values": ["none", "e.onnx"]},
            "encoder_speed": {"type": "categorical", "values": [1, 3]},
        },
        "encoder_speed: '3' is not one",
    ),
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


def test_fields_that_some_trials_heed_may_be_searched(tmp_path: Path) -> None:
    width, hidden = ({"type": "int", "low": 4, "high": 8} for _ in range(2))
    either = {"type": "categorical", "values": ["none", "e.onnx"]}
    space_of(tmp_path, {"encoder": either, "width": width, "hidden": hidden})
    heads = {"type": "categorical", "values": ["linear", "mlp"]}
    head_c = {"type": "float", "low": 0.1, "high": 1.0}
    parameters = {"head": heads, "head_c": head_c, "hidden": hidden}
    space_of(tmp_path, parameters, fixed={"encoder": "e.onnx"})


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
    "fixed: {encoder: e.onnx}\nparameters: {width: {type: int, low: 4, high: 8}}": (
        "width: with an encoder it changes nothing: take it out"
    ),
    "fixed: {encoder: e.onnx}\nparameters: {hidden: {type: int, low: 4, high: 8}}": (
        "hidden: with head: linear it changes nothing: give head: mlp under fixed"
    ),
    "fixed: {encoder: e.onnx, head: mlp}\nparameters: {head_c: {type: float, low: 1, high: 2}}": (
        "head_c: with head: mlp it changes nothing: give head: linear under fixed"
    ),
    "fixed: {dropout: 1}\nparameters: {lr: 1}": "dropout: 1.0 is outside 0 to 0.95",
    "fixed: {lr: 0.01}\nparameters: {lr: {type: float, low: 0.1, high: 1}}": (
        "'lr' is in both 'fixed' and 'parameters'"
    ),
    "parameters: {lr: {type: float, low: 0.1, high: 1}": "is not YAML: ",
    "parameters:\n  lr: low: c": "is not YAML: line 2: mapping values are not allowed here",
    "parameters: !!python/object/apply:os.getcwd []": "is not YAML: line 1: could not determine a",
    "a: &a [*a, *b]": "is not YAML: ",
    "\tparameters: 1": "is not YAML: ",
    "preset: baseline\npreset: notebook\nparameters: {lr: 1}": "line 2: 'preset' is given twice",
    "parameters: {lr: {low: 1, low: 2}}": "'low' is given twice: give each its own name",
    "fixed: {epochs: 3}\nparameters: {lr: 1}": (
        "'epochs' is the same for the whole search: give --epochs instead"
    ),
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
    (tmp_path / "large.yaml").write_text("#" * (MAX_BYTES + 1))
    with pytest.raises(UserError, match="has over 100000 bytes"):
        load_space(str(tmp_path / "large.yaml"))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"f_min": {"type": "float", "low": 0.0, "high": 100.0}}, "f_min: type float has too many"),
        ({"n_fft": {"type": "int", "low": 16, "high": 1040}}, "n_fft: type int has too many"),
        ({"sample_rate": {"type": "ordinal", "values": [4000, 500_000]}}, "sample_rate: 500000"),
        (
            {
                "n_mels": {"type": "int", "low": 16, "high": 80},
                "hop_length": {"type": "int", "low": 64, "high": 79},
            },
            "n_mels, hop_length give 1040 front ends",
        ),
        (
            {
                "sample_rate": {"type": "ordinal", "values": [2000, 4000]},
                "f_max": {"type": "categorical", "values": [1000.0, 2000.0]},
            },
            "f_max 2000 Hz is above half the sample_rate 2000",
        ),
        ({"f_min": {"type": "ordinal", "values": [50, 2000]}}, "f_min 2000 Hz is not below f_max"),
    ],
)
def test_front_ends_that_cannot_be(
    tmp_path: Path, parameters: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as caught:
        space_of(tmp_path, parameters)
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


def test_normalising_is_a_front_end_for_pcen_alone(tmp_path: Path) -> None:
    values = ["none", "clip", "recording", "band", "pcen"]
    space = space_of(tmp_path, {"normalise": {"type": "categorical", "values": values}})
    assert sorted(f.compression for f in space.front_ends()) == ["db", "pcen"]


def test_fields_that_no_encoder_heeds_are_refused_among_several_encoders(tmp_path: Path) -> None:
    both = {"type": "categorical", "values": ["a.onnx", "b.onnx"]}
    width = {"type": "int", "low": 4, "high": 8}
    with pytest.raises(UserError, match="width: with an encoder it changes nothing"):
        space_of(tmp_path, {"encoder": both, "width": width})
    either = {"type": "categorical", "values": ["none", "b.onnx"]}
    assert space_of(tmp_path, {"encoder": either, "width": width}).parameters.keys() == {
        "encoder", "width"
    }  # fmt: skip


def test_every_field_is_of_networks_of_heads_or_of_both() -> None:
    """A field that is new in the trial config must be put into one of the lists."""
    of_both = {"encoder", "f_max", "resampling", "epochs", "seed"}
    of_heads = {field for fields in HEAD_FIELDS.values() for field in fields}
    assert {*ENCODER_FIELDS, *NETWORK_FIELDS, *of_heads, *of_both} == set(FIELDS)
