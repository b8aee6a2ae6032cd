"""The timeline of a search: spans of all threads, a trace that Perfetto reads, a short table."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.inline import search_inline

from resp_tune.common import timeline
from resp_tune.common.timeline import (
    FIRST_STEP,
    add_first_step,
    add_span,
    recorded,
    restart,
    span,
    timeline_table,
    write_trace,
)
from resp_tune.data.synthetic.settings import SynthSettings
from resp_tune.data.synthetic.write import make_synthetic


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    restart()
    yield
    restart()


def _check(trace: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Return the events of each track; those of a track follow or contain each other."""
    names = {e["tid"]: e["args"]["name"] for e in trace["traceEvents"] if e["ph"] == "M"}
    tracks: dict[str, list[dict[str, Any]]] = {name: [] for name in names.values()}
    for event in trace["traceEvents"]:
        if event["ph"] in ("X", "i"):
            tracks[names[event["tid"]]].append(event)
    for events in tracks.values():
        open_until: list[int] = []
        for event in events:
            while open_until and open_until[-1] <= event["ts"]:
                open_until.pop()
            end = event["ts"] + event.get("dur", 0)
            assert not open_until or end <= open_until[-1], event
            open_until.append(end)
    return tracks


def test_spans_nest_within_their_thread_and_end_with_an_error(tmp_path: Path) -> None:
    def fail() -> None:
        with span("inner"):
            time.sleep(0.002)
            raise ValueError("planted")

    with span("outer"), pytest.raises(ValueError, match="planted"):
        fail()

    def work() -> None:
        with span("beside"):
            pass

    thread = threading.Thread(target=work, name="background_0")
    thread.start()
    thread.join()
    write_trace(tmp_path / "trace.json")
    tracks = _check(json.loads((tmp_path / "trace.json").read_text()))
    assert [e["name"] for e in tracks["driver"]] == ["Python starts", "outer", "inner"]
    assert [e["name"] for e in tracks["background_0"]] == ["beside"]
    assert tracks["driver"][0]["ts"] == 0
    assert tracks["driver"][2]["dur"] >= 2000


def test_the_first_of_several_first_steps_counts() -> None:
    for at in (5.0, 4.0):
        add_first_step(at)
    assert [one.begin for one in recorded() if one.name == FIRST_STEP] == [5.0]


def test_threads_lose_no_span_and_none_are_kept_beyond_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def work() -> None:
        for _ in range(200):
            with span("step"):
                pass

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(one.name == "step" for one in recorded()) == 1600
    monkeypatch.setattr(timeline, "MAX_SPANS", len(recorded()) + 1)
    for _ in range(3):
        add_span("late", 0.0, 1.0)
    assert sum(one.name == "late" for one in recorded()) == 1


def test_the_table_has_a_line_for_each_span_and_one_for_all_trials() -> None:
    begin = recorded()[0].begin
    add_span("sanity check", begin + 1, begin + 1.5)
    for number in range(3):
        add_span(f"trial {number}", begin + number, begin + number + 2, f"slot {number % 2 + 1}")
    lines = timeline_table("slot ").splitlines()
    assert "    1.00     0.50  sanity check" in lines
    assert lines[-1].split() == ["2.00", "mean", "of", "3", "x", "trial"]


def test_a_search_leaves_its_timeline(tmp_path: Path) -> None:
    make_synthetic(tmp_path / "data", SynthSettings(seconds=2.0))
    arguments = ("--data", str(tmp_path / "data"), "--space", "search_spaces/smoke.yaml")
    arguments += ("--epochs", "1", "--gpus", "0", "--trials", "2", "--replicates", "1")
    outcome = search_inline(tmp_path, *arguments, "--name", "timed", "-v")
    assert outcome.code == 0, outcome.err
    text = (tmp_path / "timed" / "trace.json").read_text()
    tracks = _check(json.loads(text))
    driver = [event["name"] for event in tracks["driver"]]
    expected = ["Python starts", "checks", "sanity check is awaited", "trials"]
    expected += [FIRST_STEP, "last steps"]
    assert [name for name in driver if name in expected] == expected
    trials = [e["name"] for name, events in tracks.items() if "slot" in name for e in events]
    assert sorted(trials) == ["training", "training", "trial 0", "trial 1"]
    assert "mean of 2 x trial" in outcome.err
    # Names only: nothing of this machine.
    assert str(tmp_path) not in text
    # A folder in the place of the file is named, and nothing else is lost.
    (tmp_path / "timed" / "trace.json").unlink()
    (tmp_path / "timed" / "trace.json").mkdir()
    again = search_inline(tmp_path, *arguments, "--name", "timed")
    assert again.code == 1
    assert "trace.json could not be written" in again.err
    assert again.out.strip().endswith("summary.json")
