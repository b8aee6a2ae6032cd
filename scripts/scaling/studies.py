"""The study (Optuna on sqlite): what a trial and a report cost as it grows."""

from __future__ import annotations

import itertools
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

METRIC, EPOCHS, FILLED_EPOCHS = "macro_f1", 10, 2


@dataclass(frozen=True)
class StudyCost:
    """Mean seconds with `trials` trials in it: to start one (TPE asked), a report, an end."""

    trials: int
    start: float
    report: float
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
    recorder = _recorder(study, EPOCHS)
    spent = [0.0, 0.0, 0.0]
    _one(recorder, EPOCHS, spent)  # the sampler reads the study for the first time
    spent = [0.0, 0.0, 0.0]
    for _ in range(trials):
        _one(recorder, EPOCHS, spent)
    return StudyCost(size, spent[0] / trials, spent[1] / trials / EPOCHS, spent[2] / trials)


def _one(recorder: Recorder, epochs: int, spent: list[float]) -> None:
    """A whole trial; adds the seconds of its start, its reports, its end."""
    times = [time.perf_counter()]
    given = recorder.next_trial()
    assert given is not None  # noqa: S101  # there is no budget that could be met
    times.append(time.perf_counter())
    for epoch in range(1, epochs + 1):
        recorder.advance(given["number"], [row(given["number"], epoch)])
    times.append(time.perf_counter())
    recorder.end(given["number"], "finished")
    times.append(time.perf_counter())
    for part, (before, after) in enumerate(itertools.pairwise(times)):
        spent[part] += after - before


def _fill(study: optuna.Study, size: int) -> None:
    """Finished trials with drawn parameters, until there are `size`."""
    has = len(study.get_trials(deepcopy=False))
    drawn = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.RandomSampler(seed=has)
    )
    recorder = _recorder(drawn, FILLED_EPOCHS)
    for _ in range(size - has):
        _one(recorder, FILLED_EPOCHS, [0.0, 0.0, 0.0])
    study.add_trials(drawn.get_trials(deepcopy=False))


def _recorder(study: optuna.Study, epochs: int) -> Recorder:
    return Recorder(
        study,
        load_space("search_spaces/notebook.yaml"),
        metric=METRIC,
        epochs=epochs,
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
