"""The study (Optuna on sqlite): what a trial and a report cost as it grows."""

from __future__ import annotations

import itertools
import logging
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import optuna
from benchmarks.simulated import METRICS

from resp_tune.space.search_space import load_space
from resp_tune.study.samplers import make_sampler
from resp_tune.study.study import open_study
from resp_tune.study.trial_queue import SamplerSource, TrialQueue, TrialSettings
from scaling.sizes import Sizes

log = logging.getLogger("resp_tune")

METRIC = "macro_f1"
ALONE, TOGETHER = 10, 12  # epochs: as many reports of one, then one report of so many
FILLED = (2, 0)  # the same of trials that only fill the study


@dataclass(frozen=True)
class StudyCost:
    """Mean seconds with `trials` trials in it: to start one (TPE asked), a report, an end.

    `epoch`: each further epoch in one report; `epoch_cpu`: what its thread computed for that.
    """

    trials: int
    start: float
    report: float
    epoch: float
    epoch_cpu: float
    end: float


def measure(folder: Path, sizes: Sizes) -> list[StudyCost]:
    """Costs at each size of the study, filled up in between."""
    place = Path(tempfile.mkdtemp(prefix="study-", dir=folder))
    study = open_study(place / "study.db", "grown", METRIC, make_sampler("tpe", 0))
    found = []
    for size in sizes.study:
        log.info(f"the study at {size} trials")
        _fill(study, size)
        found.append(_take(study, size, sizes.study_trials))
    return found


def _take(study: optuna.Study, size: int, trials: int) -> StudyCost:
    queue = _queue(study)
    _one(queue)  # the sampler reads the study for the first time
    taken = [_one(queue) for _ in range(trials)]
    seconds, computing = (
        [statistics.mean(part) for part in zip(*spent, strict=True)]
        for spent in zip(*taken, strict=True)
    )
    start, alone, _, end = seconds
    return StudyCost(size, start, alone / ALONE, _further(seconds), _further(computing), end)


def _further(parts: list[float]) -> float:
    """Each epoch but the first of the report of several."""
    _, alone, together, _ = parts
    return max(0.0, (together - alone / ALONE) / (TOGETHER - 1))


def _one(
    queue: TrialQueue, alone: int = ALONE, together: int = TOGETHER
) -> tuple[list[float], list[float]]:
    """A whole trial: its start, its reports of one epoch, its last one, its end.

    Of each the seconds, and those that this thread computed.
    """
    times = [(time.perf_counter(), time.thread_time())]

    def note() -> None:
        times.append((time.perf_counter(), time.thread_time()))

    given = queue.next_trial()
    note()
    assert given is not None  # noqa: S101  # there is no budget that could be met
    key = given["key"]
    for epoch in range(1, alone + 1):
        queue.advance(key, [row(key.number, epoch)])
    note()
    queue.advance(key, [row(key.number, alone + n) for n in range(1, together + 1)])
    note()
    queue.end(key, "finished")
    note()
    seconds, computing = (
        [b - a for a, b in itertools.pairwise(clock)] for clock in zip(*times, strict=True)
    )
    return seconds, computing


def _fill(study: optuna.Study, size: int) -> None:
    """Finished trials with drawn parameters, until there are `size`."""
    has = len(study.get_trials(deepcopy=False))
    drawn = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.RandomSampler(seed=has)
    )
    queue = _queue(drawn)
    for _ in range(size - has):
        _one(queue, *FILLED)
    study.add_trials(drawn.get_trials(deepcopy=False))


def _queue(study: optuna.Study) -> TrialQueue:
    space = load_space("search_spaces/notebook.yaml")
    settings = TrialSettings(METRIC, epochs=ALONE + TOGETHER, seed=0)
    return TrialQueue(SamplerSource(study, space, settings, budget=None))


def row(number: int, epoch: int) -> dict[str, float]:
    """An epoch's made-up figures, as many as a real one has."""
    score = (number * 0.618 + epoch * 0.01) % 1.0
    figures = {f"val_{name}": score for name in METRICS}
    losses = {"train_loss": 1 - score, "val_loss": 1 - score, "lr": 1e-3, "seconds": 1.0}
    return {"epoch": epoch, **losses, **figures}
