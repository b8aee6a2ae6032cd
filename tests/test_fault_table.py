"""What was seen of faults, and the table that is made of it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from support.fault_log import survived

SCRIPT = Path(__file__).parent.parent / "scripts" / "fault_table.py"


def test_faults_are_counted_and_the_longest_recovery_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.spec_from_file_location("fault_table", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    seen = tmp_path / "seen.jsonl"
    monkeypatch.delenv("RESP_TUNE_FAULTS", raising=False)
    survived("of another day", 5.0)
    monkeypatch.setenv("RESP_TUNE_FAULTS", str(seen))
    survived("a kill", 2.26)
    survived("a bad input", times=1234)
    survived("a kill", 11.0, times=2)
    survived("a kill")
    assert script.table(seen.read_text().splitlines()).splitlines()[2:] == [
        "| a kill | 4 | 11.0 s |",
        "| a bad input | 1,234 | – |",
    ]
