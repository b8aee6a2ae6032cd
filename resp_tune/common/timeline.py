"""Record what a command spends its time on, in spans, and write them as a trace.

    with span("sanity check"):
        …
    write_trace(folder / "trace.json")

The spans of a process are collected until `restart`, from any thread, at some 2 µs each. The trace
holds names and times only: no paths, no hosts, no process ids.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from resp_tune.common.paths import write_atomically

MAX_SPANS = 20_000  # of some 100 bytes; a search of more trials has the first of them
FIRST_STEP = "first training step"
_DRIVER = "driver"  # the track of the main thread


class Span(NamedTuple):
    """What happened from `begin` to `end`, in seconds of the monotonic clock.

    Spans of one `track` follow each other or lie within each other. A moment ends as it begins.
    """

    name: str
    track: str
    begin: float
    end: float


_spans: list[Span] = []
_origin = time.monotonic()


def restart() -> None:
    """Forget all spans, and count from the start of this process, which becomes the first span."""
    global _origin
    now = time.monotonic()
    _spans.clear()
    _origin = now - _process_age()
    add_span("Python starts", _origin, now)


def _process_age() -> float:
    """Return the seconds since this process started, to a hundredth; 0 where `/proc` is missing."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    started = int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - started)


@contextmanager
def span(name: str) -> Iterator[None]:
    """Record the time that a block takes, or a function (`@span`), also when it raises."""
    begin = time.monotonic()
    try:
        yield
    finally:
        add_span(name, begin, time.monotonic())


def add_span(name: str, begin: float, end: float, track: str | None = None) -> None:
    """Record a span of the monotonic clock on `track`, by default that of this thread."""
    if track is None:
        thread = threading.current_thread()
        track = _DRIVER if thread is threading.main_thread() else thread.name
    if len(_spans) < MAX_SPANS:
        _spans.append(Span(name, track, begin, end))


def add_first_step(at: float) -> None:
    """Record the moment at which the first trial began to train; later ones are ignored."""
    if not any(one.name == FIRST_STEP for one in _spans):
        add_span(FIRST_STEP, at, at, _DRIVER)


def recorded() -> list[Span]:
    """Return the spans so far, by their begin; a span comes before those within it."""
    return sorted(_spans, key=lambda one: (one.begin, -one.end))


def write_trace(path: Path) -> None:
    """Write the spans so far in Chrome's trace-event format, which ui.perfetto.dev opens."""
    spans = recorded()
    tracks = {name: i for i, name in enumerate(dict.fromkeys(one.track for one in spans), 1)}
    events: list[dict[str, object]] = [
        {"ph": "M", "name": "thread_name", "pid": 1, "tid": tid, "args": {"name": name}}
        for name, tid in tracks.items()
    ]
    for one in spans:
        begin, end = (round((at - _origin) * 1e6) for at in (one.begin, one.end))
        place = {"name": one.name, "pid": 1, "tid": tracks[one.track], "ts": begin}
        length = {"ph": "X", "dur": end - begin} if end > begin else {"ph": "i", "s": "t"}
        events.append(place | length)
    text = json.dumps({"displayTimeUnit": "ms", "traceEvents": events})
    write_atomically(path, text.encode())


def timeline_table(tracks_of_trials: str) -> str:
    """Return a line for each span, with its begin and its length in seconds.

    The tracks whose name begins with `tracks_of_trials` become one line for each name of a span.
    """
    lines, counted = [], dict[str, list[float]]()
    for one in recorded():
        begin, seconds = one.begin - _origin, one.end - one.begin
        if one.track.startswith(tracks_of_trials):
            counted.setdefault(one.name.split()[0], []).append(seconds)
        else:
            length = f"{seconds:8.2f}" if seconds else " " * 8
            also = "" if one.track == _DRIVER else f" ({one.track})"
            lines.append(f"{begin:8.2f} {length}  {one.name}{also}")
    for name, seconds_each in counted.items():
        mean = sum(seconds_each) / len(seconds_each)
        lines.append(f"{'':8} {mean:8.2f}  mean of {len(seconds_each)} x {name}")
    return "\n".join(["timeline: begin and length in seconds", *lines])
