"""The study (Optuna on sqlite): what a trial and a report cost as it grows."""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import optuna
from benchmarks.simulated import METRICS

from resp_tune.cli import say
from resp_tune.tuning.recorder import Recorder
from resp_tune.tuning.samplers import make_sampler
from resp_tune.tuning.space import load_space
from resp_tune.tuning.study import open_study
from scaling.sizes import Sizes

METRIC = "macro_f1"
ALONE, TOGETHER = 10, 12  # epochs: as many reports of one, then one report of so many
FILLED = (2, 0)  # the same of trials that only fill the study


@dataclass(frozen=True)
class StudyCost:
    """Mean seconds with `trials` trials in it: to start one (TPE asked), a report, an end.

    `epoch`: each further epoch in one report.
    """

    trials: int
    start: float
    report: float
    epoch: float
    end: float


def measure(folder: Path, sizes: Sizes) -> list[StudyCost]:
    """Costs at each size of the study, filled up in between."""
    place = Path(tempfile.mkdtemp(prefix="study-", dir=folder))
    study = open_study(place / "study.db", "grown", METRIC, make_sampler("tpe", 0))
    found = []
    for size in sizes.study:
        say(f"the study at {size} trials")
        _fill(study, size)
        found.append(_take(study, size, sizes.study_trials))
    return found


def _take(study: optuna.Study, size: int, trials: int) -> StudyCost:
    recorder = _recorder(study)
    _one(recorder)  # the sampler reads the study for the first time
    taken = [_one(recorder) for _ in range(trials)]
    start, alone, together, end = (statistics.mean(part) for part in zip(*taken, strict=True))
    report = alone / ALONE
    return StudyCost(size, start, report, max(0.0, (together - report) / (TOGETHER - 1)), end)


def _one(recorder: Recorder, alone: int = ALONE, together: int = TOGETHER) -> list[float]:
    """A whole trial: seconds of its start, its reports of one epoch, its last one, its end."""
    times = [time.perf_counter()]
    given = recorder.next_trial()
    assert given is not None  # noqa: S101  # there is no budget that could be met
    number = given["number"]
    times.append(time.perf_counter())
    for epoch in range(1, alone + 1):
        recorder.advance(number, [row(number, epoch)])
    times.append(time.perf_counter())
    recorder.advance(number, [row(number, alone + n) for n in range(1, together + 1)])
    times.append(time.perf_counter())
    recorder.end(number, "finished")
    times.append(time.perf_counter())
    return [after - before for before, after in itertools.pairwise(times)]


def _fill(study: optuna.Study, size: int) -> None:
    """Finished trials with drawn parameters, until there are `size`."""
    has = len(study.get_trials(deepcopy=False))
    drawn = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.RandomSampler(seed=has)
    )
    recorder = _recorder(drawn)
    for _ in range(size - has):
        _one(recorder, *FILLED)
    study.add_trials(drawn.get_trials(deepcopy=False))


def _recorder(study: optuna.Study) -> Recorder:
    return Recorder(
        study,
        load_space("search_spaces/notebook.yaml"),
        metric=METRIC,
        epochs=ALONE + TOGETHER,
        seed=0,
        budget=None,
        deadline=None,
        listeners=[],
    )


def row(number: int, epoch: int) -> dict[str, float]:
    """An epoch's made-up figures, as many as a real one has."""
    score = (number * 0.618 + epoch * 0.01) % 1.0
    figures = {f"val_{name}": score for name in METRICS}
    losses = {"train_loss": 1 - score, "val_loss": 1 - score, "lr": 1e-3, "seconds": 1.0}
    return {"epoch": epoch, **losses, **figures}
