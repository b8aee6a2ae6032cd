"""Simulate a search of many trials as discrete events.

Each shared part serves one request at a time, in order of arrival: the driver's loop (every report,
and every end of a trial with the start of the next), the storage (every checkpoint), and the thread
that writes to MLflow. No trial waits for that thread, which writes all waiting epochs of a trial in
one batch. Times are in seconds.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from resp_tune.tracking.trial_runs import LINGER_SECONDS

DRIVER, STORAGE = "driver loop", "storage"
MAX_SLOTS = 1_000_000  # a part that is not saturated by so many slots never is
LAG_SECONDS = 60  # a writer to MLflow that falls so far behind counts as saturated

Span = tuple[float, float]  # start and end


@dataclass(frozen=True)
class TrackerCosts:
    """Seconds of the writer's thread per batch, per epoch in a batch, and per trial."""

    batch: float = 0.0
    epoch: float = 0.0
    trial: float = 0.0


@dataclass(frozen=True)
class Costs:
    """Seconds for which each part is busy. Only the caller waits for a `*_delay`.

    `epoch`: driver's loop, each further epoch in a report. `trial(n)`: driver's loop, the end of a
    trial and the start of the next in a study of `n` trials. `write`: storage, one checkpoint.
    """

    report: float = 0.0
    epoch: float = 0.0
    report_delay: float = 0.0
    trial: Callable[[int], float] = lambda _: 0.0
    write: float = 0.0
    write_delay: float = 0.0
    trackers: Mapping[str, TrackerCosts] = field(default_factory=dict)


@dataclass(frozen=True)
class Workload:
    """The trials of a search. A share `pruned` of them ends at epoch `rung`.

    `spread`: the epoch seconds of a trial are drawn uniformly within ± this share.
    `report_seconds`, `checkpoint_seconds`: intervals of `resp_tune.execution.trainable`.
    """

    slots: int
    trials: int
    epochs: int
    epoch_seconds: float
    rung: int = 0
    pruned: float = 0.0
    spread: float = 0.0
    report_seconds: float = 1.0
    checkpoint_seconds: float = 8.0


@dataclass(frozen=True)
class Outcome:
    """Shares and rates between the first trial of the last slot and the start of the last trial.

    `busy`: share of the slots' time spent in epochs. `loads`: share of its time for which each part
    is busy. `backlog`: seconds for which each tracker's writer still works after the last trial.
    `seconds`: duration of the search.
    """

    busy: float
    loads: dict[str, float]
    backlog: dict[str, float]
    reports_per_second: float
    trials_per_second: float
    seconds: float


@dataclass(frozen=True)
class Chunk:
    """The epochs between two reports, and the files that the worker writes after them."""

    epochs: int
    seconds: float
    writes: int
    last: bool


def chunks(load: Workload, epoch_seconds: float, *, pruned: bool) -> Iterator[Chunk]:
    """Yield a trial's chunks, which end after `report_seconds`, at the rung and at the end."""
    per_report = max(1, math.ceil(load.report_seconds / epoch_seconds - 1e-9))
    epoch, unsaved = 0, 0.0
    end = load.rung if pruned else load.epochs
    while epoch < end:
        stop = load.rung if epoch < load.rung else load.epochs
        count = min(per_report, stop - epoch)
        epoch += count
        unsaved += count * epoch_seconds
        done = epoch == load.epochs
        saved = done or unsaved + epoch_seconds > load.checkpoint_seconds
        if saved:
            unsaved = 0.0
        # A finished trial also writes its validation predictions.
        yield Chunk(count, count * epoch_seconds, saved + done, epoch == end)


@dataclass(frozen=True)
class _Trial:
    number: int
    chunks: Iterator[Chunk]


class _Server:
    """A part that serves one request at a time, in order of arrival."""

    def __init__(self) -> None:
        self.free_at = 0.0
        self.spans: list[Span] = []

    def serve(self, now: float, seconds: float) -> float:
        """Return when a request that arrives `now` is done."""
        start = max(now, self.free_at)
        self.free_at = start + seconds
        self.spans.append((start, self.free_at))
        return self.free_at


@dataclass(frozen=True)
class _Report:
    """A report as the writer to MLflow receives it."""

    when: float
    trial: int
    epochs: int
    last: bool


def _writer_spans(reports: Sequence[_Report], tracker: TrackerCosts) -> list[Span]:
    """Return when the writer is busy; each batch has all reports of its trial that have arrived."""
    waiting: dict[int, list[_Report]] = {}
    spans: list[Span] = []
    free_at, arrived = 0.0, 0
    for report in reports:
        start = max(free_at, report.when + LINGER_SECONDS)
        while arrived < len(reports) and reports[arrived].when <= start:
            waiting.setdefault(reports[arrived].trial, []).append(reports[arrived])
            arrived += 1
        seconds = report.last * tracker.trial
        if report in waiting.get(report.trial, ()):
            epochs = sum(other.epochs for other in waiting.pop(report.trial))
            seconds += tracker.batch + epochs * tracker.epoch
        free_at = start + seconds
        spans.append((start, free_at))
    return spans


def simulate(load: Workload, costs: Costs, seed: int = 0) -> Outcome:
    """Simulate the trials of `load`; the outcome depends only on the arguments.

    Raise `ValueError` unless there are more trials than slots.
    """
    if load.trials <= load.slots:
        raise ValueError(f"{load.trials} trials on {load.slots} slots: no slot gets a second trial")
    rng = random.Random(seed)  # noqa: S311  # no secret: decides which trials are pruned
    driver, storage = _Server(), _Server()
    reports: list[_Report] = []
    training: list[Span] = []
    starts: list[float] = []
    events: list[tuple[float, int, _Trial, Chunk | None]] = []
    order = itertools.count()

    def schedule(when: float, trial: _Trial, finished: Chunk | None) -> None:
        heapq.heappush(events, (when, next(order), trial, finished))

    def start_trial(when: float) -> None:
        seconds = load.epoch_seconds * (1 + load.spread * rng.uniform(-1, 1))
        parts = chunks(load, seconds, pruned=rng.random() < load.pruned)
        schedule(when, _Trial(len(starts), parts), None)
        starts.append(when)

    for number in range(load.slots):
        start_trial(driver.serve(0.0, costs.trial(number)))
    while events:
        now, _, trial, finished = heapq.heappop(events)
        if finished is None:  # the slot trains the next chunk
            chunk = next(trial.chunks)
            end = now + chunk.seconds
            training.append((now, end))
            schedule(end, trial, chunk)
        elif finished.writes:
            done = storage.serve(now, finished.writes * costs.write)
            done += finished.writes * costs.write_delay
            # With its files written, the chunk still has to be reported.
            schedule(done, trial, Chunk(finished.epochs, finished.seconds, 0, finished.last))
        else:
            seconds = costs.report + (finished.epochs - 1) * costs.epoch
            seconds += costs.trial(len(starts)) if finished.last else 0.0
            done = driver.serve(now, seconds)
            reports.append(_Report(done, trial.number, finished.epochs, finished.last))
            if not finished.last:
                schedule(done + costs.report_delay, trial, None)
            elif len(starts) < load.trials:
                start_trial(done + costs.report_delay)
    writers = {name: _writer_spans(reports, tracker) for name, tracker in costs.trackers.items()}
    parts = {DRIVER: driver.spans, STORAGE: storage.spans}
    return _outcome(load.slots, starts, training, reports, parts, writers)


def _outcome(
    slots: int,
    starts: Sequence[float],
    training: Sequence[Span],
    reports: Sequence[_Report],
    parts: Mapping[str, Sequence[Span]],
    writers: Mapping[str, Sequence[Span]],
) -> Outcome:
    start, end, finish = starts[slots - 1], starts[-1], reports[-1].when
    seconds = end - start
    return Outcome(
        busy=_seconds_within(training, start, end) / (slots * seconds),
        loads={
            name: _seconds_within(spans, start, end) / seconds
            for name, spans in {**parts, **writers}.items()
        },
        # Reports that wait for more of their trial are written at once when the search ends.
        backlog={
            name: sum(b - max(a, finish) for a, b in spans if b > finish)
            for name, spans in writers.items()
        },
        reports_per_second=sum(start < report.when <= end for report in reports) / seconds,
        trials_per_second=sum(start < when <= end for when in starts) / seconds,
        seconds=finish,
    )


def _seconds_within(spans: Sequence[Span], start: float, end: float) -> float:
    return sum(max(0.0, min(b, end) - max(a, start)) for a, b in spans)


def demands(load: Workload, costs: Costs) -> tuple[dict[str, float], float]:
    """Return the mean seconds per trial of each part, and of the trial when it never queues."""
    needs = dict.fromkeys((DRIVER, STORAGE, *costs.trackers), 0.0)
    trial_seconds = 0.0
    for pruned, share in ((True, load.pruned), (False, 1 - load.pruned)):
        if not share:
            continue
        parts = list(chunks(load, load.epoch_seconds, pruned=pruned))
        writes = sum(part.writes for part in parts)
        epochs = sum(part.epochs for part in parts)
        driver = len(parts) * costs.report + (epochs - len(parts)) * costs.epoch
        driver += costs.trial(load.trials // 2)
        storage = writes * costs.write
        needs[DRIVER] += share * driver
        needs[STORAGE] += share * storage
        delays = len(parts) * costs.report_delay + writes * costs.write_delay
        seconds = sum(part.seconds for part in parts) + driver + storage + delays
        trial_seconds += share * seconds
        batches = min(len(parts), math.ceil(seconds / LAG_SECONDS))
        for name, tracker in costs.trackers.items():
            writer = batches * tracker.batch + epochs * tracker.epoch + tracker.trial
            needs[name] += share * writer
    return needs, trial_seconds


def saturation(
    load_at: Callable[[int], Workload], costs_at: Callable[[int], Costs]
) -> dict[str, int]:
    """Return the fewest slots that saturate each part, `MAX_SLOTS` for a part that never is."""

    def saturated(name: str, slots: int) -> bool:
        needs, trial_seconds = demands(load_at(slots), costs_at(slots))
        return slots * needs[name] >= trial_seconds * (1 - 1e-9)

    fewest = {}
    for name in demands(load_at(1), costs_at(1))[0]:
        low, high = 0, 1
        while high < MAX_SLOTS and not saturated(name, high):
            low, high = high, min(2 * high, MAX_SLOTS)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if saturated(name, middle) else (middle, high)
        fewest[name] = high
    return fewest
