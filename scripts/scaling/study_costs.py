"""Measure the study (Optuna on sqlite): the cost of a trial and of a report as the study grows."""

from __future__ import annotations

import itertools
import logging
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import optuna
from benchmarks.simulated_trials import METRICS

from resp_tune.space.search_space import load_space
from resp_tune.study.samplers import make_sampler
from resp_tune.study.study import open_study
from resp_tune.study.trial_queue import SamplerSource, TrialQueue, TrialSettings
from scaling.sizes import Sizes

log = logging.getLogger("resp_tune")

METRIC = "macro_f1"
SINGLE_REPORTS = 10  # of one epoch each, of a measured trial
LARGE_REPORT = 12  # epochs in its last report
FILLER_REPORTS = (2, 0)  # the same of a trial that only fills the study


@dataclass(frozen=True)
class StudyCosts:
    """Mean seconds in a study of `trials` trials.

    `start`: start of a trial, with TPE; `report`: a report of one epoch; `epoch`: each further
    epoch in a report; `epoch_cpu`: its CPU seconds; `end`: end of a trial.
    """

    trials: int
    start: float
    report: float
    epoch: float
    epoch_cpu: float
    end: float


def measure(folder: Path, sizes: Sizes) -> list[StudyCosts]:
    """Measure the costs at each size of the study, and fill the study in between."""
    temporary = Path(tempfile.mkdtemp(prefix="study-", dir=folder))
    study = open_study(temporary / "study.db", "grown", METRIC, make_sampler("tpe", 0))
    costs = []
    for size in sizes.study:
        log.info(f"measuring a study of {size} trials")
        _fill(study, size)
        costs.append(_measure_trials(study, size, sizes.study_trials))
    return costs


def _measure_trials(study: optuna.Study, size: int, trials: int) -> StudyCosts:
    queue = _queue(study)
    _run_trial(queue)  # the sampler reads the study for the first time
    times = [_run_trial(queue) for _ in range(trials)]
    seconds, cpu_seconds = (
        [statistics.mean(values) for values in zip(*phases, strict=True)]
        for phases in zip(*times, strict=True)
    )
    start, reports, _, end = seconds
    return StudyCosts(
        trials=size,
        start=start,
        report=reports / SINGLE_REPORTS,
        epoch=_further_epoch(seconds),
        epoch_cpu=_further_epoch(cpu_seconds),
        end=end,
    )


def _further_epoch(phases: list[float]) -> float:
    """Return the seconds of each epoch but the first in the large report."""
    _, single_reports, large_report, _ = phases
    return max(0.0, (large_report - single_reports / SINGLE_REPORTS) / (LARGE_REPORT - 1))


def _run_trial(
    queue: TrialQueue, single_reports: int = SINGLE_REPORTS, large_report: int = LARGE_REPORT
) -> tuple[list[float], list[float]]:
    """Run a trial; return the seconds and the CPU seconds of its four phases.

    The phases are the start, the reports of one epoch, the large report and the end.
    """
    times = [(time.perf_counter(), time.thread_time())]

    def end_phase() -> None:
        times.append((time.perf_counter(), time.thread_time()))

    trial = queue.next_trial()
    end_phase()
    assert trial is not None  # noqa: S101  # the queue has no budget
    key = trial["key"]
    for epoch in range(1, single_reports + 1):
        queue.advance(key, [epoch_row(key.number, epoch)])
    end_phase()
    last = range(single_reports + 1, single_reports + large_report + 1)
    queue.advance(key, [epoch_row(key.number, epoch) for epoch in last])
    end_phase()
    queue.end(key, "finished")
    end_phase()
    seconds, cpu_seconds = (
        [b - a for a, b in itertools.pairwise(clock)] for clock in zip(*times, strict=True)
    )
    return seconds, cpu_seconds


def _fill(study: optuna.Study, size: int) -> None:
    """Add finished trials with random parameters until the study has `size` trials."""
    present = len(study.get_trials(deepcopy=False))
    filler = optuna.create_study(
        direction="maximize", sampler=optuna.samplers.RandomSampler(seed=present)
    )
    queue = _queue(filler)
    for _ in range(size - present):
        _run_trial(queue, *FILLER_REPORTS)
    study.add_trials(filler.get_trials(deepcopy=False))


def _queue(study: optuna.Study) -> TrialQueue:
    space = load_space("search_spaces/notebook.yaml")
    settings = TrialSettings(METRIC, epochs=SINGLE_REPORTS + LARGE_REPORT, seed=0)
    return TrialQueue(SamplerSource(study, space, settings, budget=None))


def epoch_row(number: int, epoch: int) -> dict[str, float]:
    """Return made-up figures of an epoch, as many as a real epoch has."""
    score = (number * 0.618 + epoch * 0.01) % 1.0
    figures = {f"val_{name}": score for name in METRICS}
    losses = {"train_loss": 1 - score, "val_loss": 1 - score, "lr": 1e-3, "seconds": 1.0}
    return {"epoch": epoch, **losses, **figures}
