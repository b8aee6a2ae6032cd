"""The no-audio baselines of a data set, computed once and kept in the cache folder."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import Any

from resp_tune.data.baselines import held_out_baselines, no_audio_baselines
from resp_tune.learning.problem import Problem
from resp_tune.paths import cache_folder, write_atomically

FORMAT = 1


def baselines_of(problem: Problem, jobs: int) -> dict[str, Any]:
    """`no_audio_baselines` of the whole data set, and under `test_side` those of the test side."""
    path = cache_folder() / "baselines" / f"{_key(problem)}.json"
    try:
        kept: dict[str, Any] = json.loads(path.read_bytes())
        return kept
    except (OSError, ValueError):
        found = no_audio_baselines(problem.dataset, problem.clips, jobs=jobs)
    if problem.sides.test is not None:
        found["test_side"] = held_out_baselines(problem.dataset, problem.clips, problem.sides)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(found).encode())
    return found


def _key(problem: Problem) -> str:
    sheets = [
        [r.stem, r.patient, r.location, r.device, r.diagnosis, r.age, r.sex]
        for r in problem.dataset.recordings
    ]
    clips = [[c.recording, c.label] for c in problem.clips.clips]
    task = asdict(problem.clips.task)
    content = json.dumps([FORMAT, sheets, clips, task, problem.sides.digest], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:24]
