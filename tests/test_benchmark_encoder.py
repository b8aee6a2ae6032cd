"""The benchmark of encoders, on a tiny one and few recordings; nothing is compared with limits."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support.encoders import save_encoder
from support.old_release import make_recordings

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import benchmark_encoder  # noqa: E402

from resp_tune.cli import run  # noqa: E402


def test_every_row_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark_encoder, "EPOCHS", 1)
    monkeypatch.setattr(benchmark_encoder, "REPEATS", 1)
    encoder, data = save_encoder(tmp_path / "tiny.onnx"), make_recordings(tmp_path / "data")
    space = tmp_path / "space.yaml"
    space.write_text(
        f"fixed: {{encoder: {encoder}, hidden: 4}}\n"
        "parameters:\n  encoder_speed: {type: categorical, values: ['1', '1+2+4']}\n"
    )
    arguments = ["--data", str(data), "--space", str(space), "--out", str(tmp_path / "out")]
    assert run(benchmark_encoder.main, arguments) == 0
    page = tmp_path / "out" / "ENCODERS.md"
    assert capsys.readouterr().out == f"{page}\n"
    rows = [line.split("|") for line in page.read_text().splitlines() if line.startswith("| ")][1:]
    what = [row[1].strip() for row in rows]
    assert what[0] == "filling 3 caches of 24 recordings"
    assert sum(text.startswith("first ") for text in what) == 4
    assert sum(text.startswith("next ") for text in what) == 4
    assert all(float(row[2]) >= 0 and float(row[3]) >= 0 for row in rows)


def test_a_space_without_an_encoder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--data", str(tmp_path), "--space", "default.yaml", "--out", str(tmp_path / "o")]
    assert run(benchmark_encoder.main, arguments) == 2
    assert "has no encoder" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()
