"""Trial queues over small studies, and what a trial reports to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna

from resp_tune.common.trial_key import TrialKey
from resp_tune.space.search_space import load_space
from resp_tune.study.samplers import make_sampler
from resp_tune.study.study import TrialRecord, open_study
from resp_tune.study.trial_queue import SamplerSource, TrialQueue, TrialSettings

SPACE = load_space("default.yaml")


class Diary:
    """A listener that writes down what it is told."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, int, Any]] = []

    def started(self, trial: TrialRecord) -> None:
        self.lines.append(("started", trial.number, trial.config.seed))

    def advanced(self, trial: TrialRecord, epochs: Sequence[Mapping[str, float]]) -> None:
        self.lines.append(("advanced", trial.number, [int(row["epoch"]) for row in epochs]))

    def ended(self, trial: TrialRecord) -> None:
        self.lines.append(("ended", trial.number, trial.state))


def study_at(folder: Path, metric: str = "macro_f1") -> optuna.Study:
    return open_study(folder / "study.db", "first", metric, make_sampler("random", 0))


def queue_of(study: optuna.Study, diary: Diary | None = None, **more: Any) -> TrialQueue:
    settings = settings_of(more.pop("metric", "macro_f1"), more.pop("precision", "auto"))
    source = SamplerSource(study, SPACE, settings, **({"budget": 4} | more))
    return TrialQueue(source, [] if diary is None else [diary])


def settings_of(metric: str = "macro_f1", precision: Any = "auto") -> TrialSettings:
    return TrialSettings(metric, epochs=3, seed=5, precision=precision)


def row(epoch: int, value: float, metric: str = "macro_f1") -> dict[str, float]:
    return {"epoch": epoch, "train_loss": 1.0, f"val_{metric}": value, "lr": 1e-3, "seconds": 0.1}


def next_of(queue: TrialQueue) -> dict[str, Any]:
    handed = queue.next_trial()
    assert handed is not None
    return handed


def epochs_of(queue: TrialQueue, key: TrialKey) -> int:
    """Return how many epochs of a running run the study has."""
    return len(queue._running[key].epochs)


def finish(queue: TrialQueue, number: int, value: float) -> None:
    key = TrialKey(number)
    queue.advance(key, [row(e, value * e / 3) for e in (1, 2, 3)])
    queue.end(key, "finished")
