"""A search with an encoder: what its plan says, and what is refused before anything is written."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.bad_inputs import check
from support.encoders import save_encoder
from support.small_sets import write_set

from resp_tune import search
from resp_tune.config import EncoderFrontEnd, TrialConfig
from resp_tune.errors import UserError
from resp_tune.evaluate import _mel_front_ends
from resp_tune.features import cache
from resp_tune.harness.console import describe_plan
from resp_tune.harness.options import SearchOptions
from resp_tune.harness.spec import MAX_PREFILLED, SearchSpec, trial_identity
from resp_tune.harness.validate import validate
from resp_tune.space.search_space import load_space

DIAGNOSES = {
    f"{100 + n}_1b1_{place}_sc_{device}": ("COPD", "Healthy", "URTI")[n % 3]
    for n in range(15)
    for place, device in (("Al", "Meditron"), ("Pr", "LittC2SE"))
}
SPACE = """
fixed: {encoder: tiny.onnx, f_max: 1900.0}
parameters:
  encoder_layer: {type: ordinal, values: [map, 5, embedding, last, 3]}
  encoder_speed: {type: categorical, values: [1, 1+2+4]}
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    write_set(tmp_path / "data", DIAGNOSES)
    (tmp_path / "space.yaml").write_text(SPACE)
    save_encoder(tmp_path / "tiny.onnx")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RESP_TUNE_CACHE", str(tmp_path / "cache"))
    yield tmp_path
    cache._PINNED.clear()


def validated(**options: object) -> SearchSpec:
    given = {"data": "data", "space": "space.yaml", "storage": "r", "dry_run": True}
    return validate(SearchOptions(**{**given, **options}))  # type: ignore[arg-type]


def test_the_plan_says_how_long_filling_takes(place: Path) -> None:
    spec = validated()
    (encoder,) = spec.data.encoders
    front_ends = spec.data.front_ends
    assert len(front_ends) == 15 > MAX_PREFILLED
    assert spec.data.prefilled == front_ends
    plan = dict(describe_plan(spec))
    recordings = len(spec.data.sources)
    each = {1: 19, 2: 9, 4: 4}  # windows of .1 s, a half apart, of a recording of 1 s
    assert plan["encoder"].startswith(f"{encoder.line}; filling 15 caches takes ")
    assert f" takes {recordings * sum(each.values()):,} windows of " in plan["encoder"]
    assert plan["encoder"].endswith(" s of one core")
    assert plan["windows"] == (
        "waveform of 16000 Hz, 0.1 s every 0.05 s; of each, layer 3: 4 frames × 2 bands × 200 "
        "channels, last: 4 frames × 1 band × 6 channels, embedding: 1 frame × 1 band × 6 channels"
    )
    spec.data.caches.fill(front_ends)
    assert dict(describe_plan(spec))["encoder"] == f"{encoder.line}; its caches are filled"


def test_another_encoder_under_the_same_path_is_another_search(place: Path) -> None:
    spec = validated()
    before = trial_identity(spec.options, spec.space, spec.data)
    save_encoder(place / "tiny.onnx", seed=1)
    os.utime(place / "tiny.onnx", ns=(1, 1))
    spec = validated()
    after = trial_identity(spec.options, spec.space, spec.data)
    assert {key for key in before if before[key] != after[key]} == {"encoder 'tiny.onnx'"}
    space = place / "mel.yaml"
    space.write_text("parameters: {lr: {type: float, low: 0.001, high: 0.01}}")
    spec = validated(space="mel.yaml")
    assert not [key for key in trial_identity(spec.options, spec.space, spec.data)
                if key.startswith("encoder")]  # fmt: skip
    assert not any(isinstance(f, EncoderFrontEnd) for f in spec.data.front_ends)


def test_a_linear_head_has_no_epochs_to_pair(place: Path) -> None:
    with pytest.raises(UserError, match="all epochs of a linear head are one"):
        validated(folds=2, fold_rule="wilcoxon")


def test_the_audit_tests_mel_bands_alone(place: Path) -> None:
    """Of a space with encoders alone, those of the default space."""
    assert _mel_front_ends("space.yaml") == list(load_space("default.yaml").front_ends())
    (place / "both.yaml").write_text(
        "parameters: {encoder: {type: categorical, values: [none, tiny.onnx]}}"
    )
    assert _mel_front_ends("both.yaml") == [TrialConfig().front_end]
    assert len(load_space("both.yaml").front_ends()) == 2


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no file": (
        lambda place: (place / "tiny.onnx").unlink(),
        "space 'space.yaml': encoder 'tiny.onnx' is not there: give the path of a .tflite or",
    ),
    "damaged": (
        lambda place: (place / "tiny.onnx").write_bytes(b"?" * 99),
        "encoder 'tiny.onnx': it is damaged, or no ONNX file",
    ),
    "a layer": (
        lambda place: (place / "space.yaml").write_text(SPACE.replace("map", "maps")),
        "encoder_layer 'maps' is not one of its 7 layers: 0 floats 1×1600,",
    ),
    "a speed": (
        lambda place: (place / "space.yaml").write_text(SPACE.replace("1+2+4", "1+3")),
        "encoder_speed: '1+3' is not one of 1, 2, 4,",
    ),
    "its settings": (
        lambda place: (place / "tiny.yaml").write_text("hop: fast"),
        "encoder settings 'tiny.yaml': hop: 'fast' is not a number or null",
    ),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_wrong_encoder_is_one_line_and_nothing_is_written(place: Path, broken: str) -> None:
    harm, message = BROKEN[broken]
    harm(place)
    arguments = ["--data", "data", "--space", "space.yaml", "--storage", "r", "--trials", "2"]
    code, error = check(search.main, arguments, place)
    assert code == 2
    assert message in error
