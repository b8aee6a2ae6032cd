"""A winner of the cycle task judges each annotated breath of a recording."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from support.bundles import save_networks
from support.toy import toy_config, toy_folds

from resp_tune.data.sounds.waveforms import load_waveform
from resp_tune.features.batches import ClipIndex
from resp_tune.features.logmel import join_frames, log_mels
from resp_tune.predict import main
from resp_tune.training.loop import Training
from resp_tune.training.model_bundle import load_bundle

CLASSES = ("normal", "crackle", "wheeze")


@pytest.fixture
def winner(tmp_path: Path) -> Path:
    config = toy_config(epochs=1)
    training = Training(config, toy_folds(config, 1))
    training.run_epoch()
    folder = tmp_path / "winner"
    save_networks(folder, config, CLASSES, training.networks(), {"task": "cycles"})
    return folder


@pytest.fixture
def breaths(tmp_path: Path) -> Path:
    noise = np.random.default_rng(0).standard_normal(4000 * 4) * 0.1
    path = tmp_path / "101_1b1_Al_sc_Meditron.wav"
    soundfile.write(path, noise, 4000)
    return path


def predicted(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[list[dict], str]:  # type: ignore[type-arg]  # JSON
    main([*argv, "--json"])
    out, err = capsys.readouterr()
    return json.loads(out), err


def test_each_cycle_is_judged(
    winner: Path, breaths: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    breaths.with_suffix(".txt").write_text("0.5\t1.75\t0\t1\nnonsense\n2.0\t3.9\t1\t0\n")
    (found,), err = predicted(capsys, str(breaths), "--winner", str(winner))
    assert "line 2 has 1 cell, not 4 as the others: 'nonsense'" in err
    assert [(c["start"], c["end"]) for c in found["cycles"]] == [(0.5, 1.75), (2.0, 3.9)]
    bundle = load_bundle(winner)
    frames = join_frames(log_mels(load_waveform(breaths, 4000), [bundle.config.front_end]))
    rate = 4000 / 128
    for cycle in found["cycles"]:
        first, last = round(cycle["start"] * rate), round(cycle["end"] * rate) + 1
        clip = ClipIndex(frames, torch.tensor([first]), torch.tensor([last - first]))
        expected = bundle.predict_clips(lambda _, own=clip: own)[0]
        shares = [cycle["probabilities"][name] for name in CLASSES]
        assert shares == pytest.approx(expected.tolist(), abs=1e-5)
        assert cycle["class"] == CLASSES[int(expected.argmax())]
    for name in CLASSES:
        mean = np.mean([c["probabilities"][name] for c in found["cycles"]])
        assert found["probabilities"][name] == pytest.approx(mean, abs=1e-5)
    main([str(breaths), "--winner", str(winner)])
    assert "0.50–1.75 s" in capsys.readouterr().out


@pytest.mark.parametrize("annotations", [None, "", "no cycle here\n"])
def test_without_annotations_it_says_what_it_does(
    winner: Path, breaths: Path, capsys: pytest.CaptureFixture[str], annotations: str | None
) -> None:
    if annotations is not None:
        breaths.with_suffix(".txt").write_text(annotations)
    (found,), err = predicted(capsys, str(breaths), "--winner", str(winner))
    assert "has no breathing cycles" in err
    assert set(found) == {"file", "class", "probabilities", "warnings"}
    assert sum(found["probabilities"].values()) == pytest.approx(1, abs=1e-4)
