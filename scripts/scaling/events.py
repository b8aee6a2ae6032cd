"""A search of many trials as discrete events: slots that train, and what they wait for.

Each of the shared parts serves one at a time, in order of arrival: the driver's loop (every report,
every end of a trial with the start of the next), the storage (every checkpoint), and the writer to
MLflow, which nobody waits for, and which takes all of a trial that waits in one batch. Times are
seconds.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from resp_tune.tracking.search_run import LINGER_SECONDS

DRIVER, STORAGE = "driver loop", "storage"
MOST = 1_000_000  # slots; what is not saturated there is called never
LAG_SECONDS = 60  # a writer that cannot but be so far behind is called full

Span = tuple[float, float]  # start and end


@dataclass(frozen=True)
class Tracker:
    """How long the writer is held by a batch, by each epoch in it, and by a trial."""

    batch: float = 0.0
    epoch: float = 0.0
    trial: float = 0.0


@dataclass(frozen=True)
class Costs:
    """How long each part is held. A `delay` is what its caller waits besides.

    `epoch`: of the driver's loop, each further epoch in one report.
    `trial(n)`: of the driver's loop, the end of a trial and the start of the next when the study
    has `n` of them.
    """

    report: float = 0.0
    epoch: float = 0.0
    report_delay: float = 0.0
    trial: Callable[[int], float] = lambda _: 0.0
    write: float = 0.0
    write_delay: float = 0.0
    trackers: Mapping[str, Tracker] = field(default_factory=dict)


@dataclass(frozen=True)
class Workload:
    """What is to be trained. A share `pruned` of the trials ends at epoch `rung`.

    `spread`: trials differ in the seconds of their epochs, evenly by ± this share.
    `report_seconds`, `checkpoint_seconds`: the rules of `resp_tune.execution.trainable`.
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
    """Shares and rates from when every slot had its first trial until the last was handed out.

    `busy`: of the slots' seconds, those spent in epochs. `loads`: the same of each part, at work.
    `backlog`: how long each tracker's writer still works after the last trial has ended, in
    seconds.
    """

    busy: float
    loads: dict[str, float]
    backlog: dict[str, float]
    reports_per_second: float
    trials_per_second: float
    seconds: float


@dataclass(frozen=True)
class Chunk:
    """Epochs between two reports, and the files that the worker writes after them."""

    epochs: int
    seconds: float
    writes: int
    last: bool


def chunks(load: Workload, epoch_seconds: float, *, pruned: bool) -> Iterator[Chunk]:
    """A trial as its worker runs it: a report a second at most, one at the rung, one at the end."""
    each = max(1, math.ceil(load.report_seconds / epoch_seconds - 1e-9))
    epoch, unsaved = 0, 0.0
    end = load.rung if pruned else load.epochs
    while epoch < end:
        stop = load.rung if epoch < load.rung else load.epochs
        count = min(each, stop - epoch)
        epoch += count
        unsaved += count * epoch_seconds
        done = epoch == load.epochs
        saved = done or unsaved + epoch_seconds > load.checkpoint_seconds
        if saved:
            unsaved = 0.0
        # At its end a trial also writes what it says of the validation side.
        yield Chunk(count, count * epoch_seconds, saved + done, epoch == end)


@dataclass(frozen=True)
class _Trial:
    number: int
    chunks: Iterator[Chunk]


class _Server:
    """Serves one at a time, in order of arrival."""

    def __init__(self) -> None:
        self.free = 0.0
        self.held: list[Span] = []

    def serve(self, now: float, hold: float) -> float:
        start = max(now, self.free)
        self.free = start + hold
        self.held.append((start, self.free))
        return self.free


@dataclass(frozen=True)
class _Reported:
    """A report, as the writer to MLflow gets it."""

    when: float
    trial: int
    epochs: int
    last: bool


def _written(told: Sequence[_Reported], tracker: Tracker) -> list[Span]:
    """When the writer is at work: in order, each batch with all that its trial has told by then."""
    waiting: dict[int, list[_Reported]] = {}
    spans: list[Span] = []
    free, come = 0.0, 0
    for report in told:
        start = max(free, report.when + LINGER_SECONDS)
        while come < len(told) and told[come].when <= start:
            waiting.setdefault(told[come].trial, []).append(told[come])
            come += 1
        seconds = report.last * tracker.trial
        if report in waiting.get(report.trial, ()):
            epochs = sum(one.epochs for one in waiting.pop(report.trial))
            seconds += tracker.batch + epochs * tracker.epoch
        free = start + seconds
        spans.append((start, free))
    return spans


def simulate(load: Workload, costs: Costs, seed: int = 0) -> Outcome:
    """Run the trials of `load`; the same seed gives the same."""
    if load.trials <= load.slots:
        raise ValueError(f"{load.trials} trials on {load.slots} slots: none would be handed on")
    rng = random.Random(seed)  # noqa: S311  # which trial is pruned is no secret
    driver, storage = _Server(), _Server()
    told: list[_Reported] = []
    trained: list[Span] = []
    handed: list[float] = []
    events: list[tuple[float, int, _Trial, Chunk | None]] = []
    order = itertools.count()

    def wait(when: float, trial: _Trial, ran: Chunk | None) -> None:
        heapq.heappush(events, (when, next(order), trial, ran))

    def hand_out(when: float) -> None:
        seconds = load.epoch_seconds * (1 + load.spread * rng.uniform(-1, 1))
        parts = chunks(load, seconds, pruned=rng.random() < load.pruned)
        wait(when, _Trial(len(handed), parts), None)
        handed.append(when)

    for number in range(load.slots):
        hand_out(driver.serve(0.0, costs.trial(number)))
    while events:
        now, _, trial, ran = heapq.heappop(events)
        if ran is None:  # its slot goes on
            chunk = next(trial.chunks)
            end = now + chunk.seconds
            trained.append((now, end))
            wait(end, trial, chunk)
        elif ran.writes:
            done = storage.serve(now, ran.writes * costs.write) + ran.writes * costs.write_delay
            # Written: what is left of this chunk is its report.
            wait(done, trial, Chunk(ran.epochs, ran.seconds, 0, ran.last))
        else:
            hold = costs.report + (ran.epochs - 1) * costs.epoch
            done = driver.serve(now, hold + (costs.trial(len(handed)) if ran.last else 0.0))
            told.append(_Reported(done, trial.number, ran.epochs, ran.last))
            if not ran.last:
                wait(done + costs.report_delay, trial, None)
            elif len(handed) < load.trials:
                hand_out(done + costs.report_delay)
    written = {name: _written(told, tracker) for name, tracker in costs.trackers.items()}
    return _outcome(
        load, handed, trained, told, {DRIVER: driver.held, STORAGE: storage.held}, written
    )


def _outcome(
    load: Workload,
    handed: Sequence[float],
    trained: Sequence[Span],
    told: Sequence[_Reported],
    held: Mapping[str, Sequence[Span]],
    written: Mapping[str, Sequence[Span]],
) -> Outcome:
    start, end, over = handed[load.slots - 1], handed[-1], told[-1].when
    seconds = end - start
    at_work = {**held, **written}
    return Outcome(
        busy=_inside(trained, start, end) / (load.slots * seconds),
        loads={name: _inside(spans, start, end) / seconds for name, spans in at_work.items()},
        # What waits for more of its trial is written at once when the search ends.
        backlog={
            name: sum(b - max(a, over) for a, b in spans if b > over)
            for name, spans in written.items()
        },
        reports_per_second=sum(start < one.when <= end for one in told) / seconds,
        trials_per_second=sum(start < when <= end for when in handed) / seconds,
        seconds=over,
    )


def _inside(spans: Sequence[Span], start: float, end: float) -> float:
    """Seconds of the spans that lie in `start..end`."""
    return sum(max(0.0, min(b, end) - max(a, start)) for a, b in spans)


def demands(load: Workload, costs: Costs) -> tuple[dict[str, float], float]:
    """Seconds that a trial needs of each part, and its own where nobody is before it; means."""
    needs = dict.fromkeys((DRIVER, STORAGE, *costs.trackers), 0.0)
    alone = 0.0
    for pruned, share in ((True, load.pruned), (False, 1 - load.pruned)):
        if not share:
            continue
        parts = list(chunks(load, load.epoch_seconds, pruned=pruned))
        writes = sum(part.writes for part in parts)
        epochs = sum(part.epochs for part in parts)
        driven = len(parts) * costs.report + (epochs - len(parts)) * costs.epoch
        driven += costs.trial(load.trials // 2)
        stored = writes * costs.write
        needs[DRIVER] += share * driven
        needs[STORAGE] += share * stored
        waited = len(parts) * costs.report_delay + writes * costs.write_delay
        own = sum(part.seconds for part in parts) + driven + stored + waited
        alone += share * own
        batches = min(len(parts), math.ceil(own / LAG_SECONDS))
        for name, tracker in costs.trackers.items():
            spent = batches * tracker.batch + epochs * tracker.epoch + tracker.trial
            needs[name] += share * spent
    return needs, alone


def saturation(
    load_at: Callable[[int], Workload], costs_at: Callable[[int], Costs]
) -> dict[str, int]:
    """The slots from which on each part has no second to spare; `MOST` where it has."""

    def full(name: str, slots: int) -> bool:
        needs, alone = demands(load_at(slots), costs_at(slots))
        return slots * needs[name] >= alone * (1 - 1e-9)

    found = {}
    for name in demands(load_at(1), costs_at(1))[0]:
        low, high = 0, 1
        while high < MOST and not full(name, high):
            low, high = high, min(2 * high, MOST)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if full(name, middle) else (middle, high)
        found[name] = high
    return found
