"""The no-audio baselines of a data set, computed once and kept in the cache folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from resp_tune.data import baselines
from resp_tune.data.baselines import Answers, held_out_answers, no_audio_baselines
from resp_tune.learning.problem import Problem
from resp_tune.paths import cache_folder, write_atomically

FORMAT = 2


def baselines_of(problem: Problem, jobs: int) -> dict[str, Any]:
    """`no_audio_baselines` of the whole data set, and under `test_side` those of the test side."""
    found = _kept(
        f"{_key(problem)}.json",
        lambda: no_audio_baselines(problem.dataset, problem.clips, jobs=jobs),
    )
    if problem.sides.test is not None:
        found["test_side"] = answers_of(problem).scores()
    return found


def answers_of(problem: Problem) -> Answers:
    """`held_out_answers` of the problem."""

    def answer() -> dict[str, Any]:
        made = held_out_answers(problem.dataset, problem.clips, problem.sides)
        by_columns = {name: rows.tolist() for name, rows in made.by_columns.items()}
        return {**asdict(made), "labels": made.labels.tolist(), "by_columns": by_columns}

    kept = _kept(f"{_key(problem)}.answers.json", answer)
    return Answers(
        stems=tuple(kept["stems"]),
        labels=np.array(kept["labels"]),
        by_columns={name: np.array(rows) for name, rows in kept["by_columns"].items()},
        majority=kept["majority"],
    )


def _kept(name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    path = cache_folder() / "baselines" / name
    try:
        kept: dict[str, Any] = json.loads(path.read_bytes())
    except (OSError, ValueError):
        kept = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(kept).encode())
    return kept


def _key(problem: Problem) -> str:
    sheets = [
        [r.stem, r.patient, r.location, r.device, r.diagnosis, r.age, r.sex]
        for r in problem.dataset.recordings
    ]
    clips = [[c.recording, c.label] for c in problem.clips.clips]
    task = asdict(problem.clips.task)
    parts = [FORMAT, baselines.TREES, sheets, clips, task, problem.sides.digest]
    content = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:24]
