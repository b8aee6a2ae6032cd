"""The bundle: what was trained comes back, and what is not sound is refused in one line."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from support.bundles import save_networks
from support.toy import CLASSES, toy_config, toy_folds, toy_side

from resp_tune.config import TrialConfig
from resp_tune.errors import UserError
from resp_tune.features.batches import ClipIndex, eval_params
from resp_tune.features.logmel import join_frames, log_mels
from resp_tune.training.loop import Training, predict
from resp_tune.training.model_bundle import Bundle, Member, load_bundle, save_bundle


@pytest.fixture(scope="module")
def training() -> Training:
    config = toy_config(epochs=2, channels=2, micro_batch=4)
    run = Training(config, toy_folds(config, 2))
    while not run.done:
        run.run_epoch()
    return run


def save(training: Training, folder: Path) -> str:
    details = {"task": "tones", "provenance": {"search": "first", "trial": 3}}
    return save_networks(folder, training.config, CLASSES, training.networks(), details)


def same(one: Bundle, config: TrialConfig, training: Training) -> None:
    side = toy_side(config, 12, seed=9)
    draws = eval_params(side.clips.count, config)
    expected = [predict(n, side.clips, draws, config) for n in training.networks()]
    assert np.array_equal(one.predict_clips(lambda _: side.clips), np.mean(expected, axis=0))


def test_a_round_trip_predicts_the_same(training: Training, tmp_path: Path) -> None:
    digest = save(training, tmp_path / "winner")
    bundle = load_bundle(str(tmp_path / "winner"))
    assert (bundle.config, bundle.classes) == (training.config, CLASSES)
    assert bundle.config.sample_rate == 4000
    assert len(bundle.networks) == 2
    assert not any(network.training for network in bundle.networks)
    assert bundle.details["provenance"] == {"search": "first", "trial": 3}
    assert bundle.details["weights_sha256"] == digest
    same(bundle, training.config, training)


def test_an_ensemble_predicts_the_mean_of_its_networks(training: Training, tmp_path: Path) -> None:
    """Of three members, one of which masks its clips by another config and has one network."""
    other = training.config.replace({"normalise": "none", "seed": 5})
    more = Training(other, toy_folds(other, 1))
    while not more.done:
        more.run_epoch()
    networks = [tuple(run.networks()) for run in (training, more, training)]
    configs = (training.config, other, training.config)
    best, *others = (Member(c, n) for c, n in zip(configs, networks, strict=True))
    made = Bundle(training.config, CLASSES, best.networks, {}, others=tuple(others))
    digest = save_bundle(tmp_path, made, {"task": "tones"})
    bundle = load_bundle(tmp_path)
    assert bundle.details["weights_sha256"] == digest
    assert [m.config for m in bundle.members] == list(configs)
    clips = {
        config.normalise: toy_side(config, 12, seed=9).clips for config in (training.config, other)
    }
    found = bundle.predict_clips(lambda config: clips[config.normalise])
    expected = []
    for member, own in zip(bundle.members, networks, strict=True):
        side = clips[member.config.normalise]
        draws = eval_params(side.count, member.config)
        side = side.with_level(member.config)
        expected.append(np.mean([predict(n, side, draws, member.config) for n in own], axis=0))
    np.testing.assert_allclose(found, np.mean(expected, axis=0), rtol=1e-6)


def test_members_weigh_the_same(training: Training) -> None:
    """One of three seeds has diverged, which leaves its trial with fewer networks."""
    networks = tuple(training.networks())
    bundle = Bundle(
        training.config, CLASSES, networks, {}, others=(Member(training.config, networks[:1]),)
    )
    each = np.random.default_rng(0).dirichlet(np.ones(3), (3, 5)).astype(np.float32)
    expected = (each[:2].mean(axis=0) + each[2]) / 2
    np.testing.assert_allclose(bundle.combine(each), expected, rtol=1e-6)
    np.testing.assert_array_equal(bundle.combine(each[:2]), each[:2].mean(axis=0))


def test_an_ensemble_is_smaller_after_another_search(training: Training, tmp_path: Path) -> None:
    networks = tuple(training.networks())
    one = Bundle(training.config, CLASSES, networks, {})
    three = replace(one, others=(Member(training.config, networks),) * 2)
    digests = [save_bundle(tmp_path, bundle, {}) for bundle in (three, one, three)]
    assert digests[0] == digests[2] != digests[1]
    save_bundle(tmp_path, one, {})
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "weights.safetensors"}
    assert len(load_bundle(tmp_path).members) == 1


def member_is_gone(folder: Path) -> None:
    (folder / "member1.safetensors").unlink()


def members_are_swapped(folder: Path) -> None:
    (folder / "member1.safetensors").write_bytes((folder / "weights.safetensors").read_bytes()[:-4])


def edit_members(change: Callable[[list[Any]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        content = json.loads((folder / "config.json").read_text())
        content["members"] = change(content["members"])
        (folder / "config.json").write_text(json.dumps(content))

    return edit


def of_another_rate(members: list[Any]) -> list[Any]:
    members[1]["trial_config"]["sample_rate"] = 8000
    return members


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (member_is_gone, "member1.safetensors' cannot be read"),
        (members_are_swapped, "member1.safetensors' is damaged: its hash"),
        (edit_members(lambda members: []), "members is not a list of 1 to 50"),
        (edit_members(lambda members: "all"), "members is not a list of 1 to 50"),
        (edit_members(lambda members: [*members, 3]), "trial_config is not a mapping"),
        (edit_members(lambda members: [*members, members[0]]), "member2.safetensors' cannot be"),
        (edit_members(of_another_rate), "its members are for different waveforms"),
        (edit_members(lambda members: members[:1]), "weights_sha256 is not that of its members"),
    ],
)
def test_a_damaged_ensemble_is_refused(
    damage: Callable[[Path], None], message: str, training: Training, tmp_path: Path
) -> None:
    networks = tuple(training.networks())
    others = (Member(training.config.replace({"dropout": 0.1}), networks),)
    save_bundle(tmp_path, Bundle(training.config, CLASSES, networks, {}, others=others), {})
    damage(tmp_path)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        load_bundle(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_waveform_is_predicted_like_a_clip_of_a_store(training: Training, tmp_path: Path) -> None:
    save(training, tmp_path)
    bundle = load_bundle(tmp_path)
    waveform = torch.sin(2 * torch.pi * 600 * torch.arange(7000) / 4000)
    frames = join_frames(log_mels(waveform, [bundle.config.front_end]))
    clip = ClipIndex(frames, frames.first, frames.count)
    found = bundle.predict_waveform(waveform)
    assert found.shape == (3,)
    assert found.sum() == pytest.approx(1, abs=1e-5)
    assert np.array_equal(found, bundle.predict_clips(lambda _: clip)[0])
    assert np.isfinite(bundle.predict_waveform(torch.zeros(1))).all()


def test_the_files_are_plain(training: Training, tmp_path: Path) -> None:
    """Weights without pickle, and a config that a person can read."""
    digest = save(training, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", "weights.safetensors"]
    weights = tmp_path / "weights.safetensors"
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == digest
    with safe_open(weights, "pt") as file:
        assert {name.split(".")[0] for name in file.keys()} == {"fold0", "fold1"}  # noqa: SIM118  # not a dict
    content = json.loads((tmp_path / "config.json").read_text())
    assert content["classes"] == list(CLASSES)
    assert content["front_end"] == {
        "sample_rate": 4000,
        "n_fft": 256,
        "hop_length": 128,
        "n_mels": 16,
        "f_min": 50.0,
        "f_max": 2000.0,
        "compression": "db",
        "resampling": "kaiser",
    }
    assert TrialConfig.from_saved(content["trial_config"]) == training.config


def test_a_config_saved_before_a_field_was_added(training: Training) -> None:
    """Winners of 0.1.0 were trained on recordings that torchaudio's default filter resampled."""
    saved = {k: v for k, v in training.config.as_dict().items() if k != "resampling"}
    assert TrialConfig.from_saved(saved) == training.config.replace({"resampling": "hann"})


def test_saving_again_replaces(training: Training, tmp_path: Path) -> None:
    first = save(training, tmp_path)
    assert save(training, tmp_path) == first
    other = Training(training.config.replace({"seed": 1}), toy_folds(training.config, 1))
    assert save(other, tmp_path) != first
    same(load_bundle(tmp_path), training.config, other)
    assert len(list(tmp_path.iterdir())) == 2


def change(**values: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return apply


def change_trial_config(**values: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "config.json"
        content = json.loads(path.read_text())
        content["trial_config"] |= values
        path.write_text(json.dumps(content))

    return apply


def write(name: str, data: bytes) -> Callable[[Path], None]:
    return lambda folder: void((folder / name).write_bytes(data))


def void(_: object) -> None:
    return None


def flip_a_weight(folder: Path) -> None:
    path = folder / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(data)


def other_weights_with_their_hash(folder: Path) -> None:
    (folder / "weights.safetensors").write_bytes(b"no tensors in here")
    digest = hashlib.sha256(b"no tensors in here").hexdigest()
    change(weights_sha256=digest)(folder)


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "weight flipped": (flip_a_weight, "is damaged: its hash is not the one in config.json"),
    "weights cut": (write("weights.safetensors", b""), "is damaged: its hash"),
    "weights gone": (lambda f: (f / "weights.safetensors").unlink(), "cannot be read"),
    "weights no tensors": (other_weights_with_their_hash, "is not a valid bundle"),
    "config gone": (lambda f: (f / "config.json").unlink(), "is not a bundle: no readable"),
    "config garbage": (write("config.json", b"{]"), "it is not JSON"),
    "config not text": (write("config.json", b"\xff\xfe\x00"), "it is not JSON"),
    "config deep": (write("config.json", b"[" * 100_000), "it is not JSON"),
    "config a list": (write("config.json", b"[1]"), "not a bundle of format 1"),
    "config a number": (write("config.json", b"7"), "not a bundle of format 1"),
    "other format": (change(format=99), "not a bundle of format 1 or 2, which this"),
    "no hash": (change(weights_sha256=None), "is damaged"),
    "fewer classes": (change(classes=["a", "b"]), "is not a valid bundle"),
    "classes no list": (change(classes=3), "is not a valid bundle"),
    "more folds": (change(folds=3), "is not a valid bundle"),
    "fewer folds": (change(folds=1), "is not a valid bundle"),
    "no folds": (change(folds=0), "is not a valid bundle"),
    "folds no number": (change(folds="two"), "is not a valid bundle"),
    "trial config a list": (change(trial_config=[]), "is not a valid bundle"),
    "trial config text": (change(trial_config="lr"), "is not a valid bundle"),
    "trial config null": (change(trial_config=None), "is not a valid bundle"),
    "unknown field": (change_trial_config(colour="red"), "unknown field 'colour'"),
    "value out of range": (change_trial_config(dropout=2.0), "dropout: 2.0 is outside"),
    "another width": (change_trial_config(width=8), "is not a valid bundle"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_refused_in_one_line(training: Training, tmp_path: Path, damage: str) -> None:
    save(training, tmp_path)
    apply, message = DAMAGE[damage]
    apply(tmp_path)
    with pytest.raises(UserError) as caught:
        load_bundle(tmp_path)
    assert message in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("given", ["gone", "file"])
def test_what_is_no_folder_is_refused(tmp_path: Path, given: str) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match=r"is not a bundle: .* give the winner/ folder") as caught:
        load_bundle(tmp_path / given)
    assert str(tmp_path / given) in str(caught.value)


def test_an_unpickler_finds_nothing_to_do(training: Training, tmp_path: Path) -> None:
    """Weights that are a pickle are refused, even with the right hash."""
    save(training, tmp_path)
    torch.save({"fold0": torch.zeros(1)}, tmp_path / "weights.safetensors")
    digest = hashlib.sha256((tmp_path / "weights.safetensors").read_bytes()).hexdigest()
    change(weights_sha256=digest)(tmp_path)
    with pytest.raises(UserError, match="is not a valid bundle"):
        load_bundle(tmp_path)
