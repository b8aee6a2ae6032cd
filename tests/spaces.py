"""Search spaces written by a test, and studies to try them on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import yaml

from resp_tune.tuning.space import SearchSpace, load_space


def new_study(seed: int = 0) -> optuna.Study:
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))


def space_of(folder: Path, parameters: dict[str, Any], **more: Any) -> SearchSpace:
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump({"parameters": parameters, **more}))
    return load_space(str(path))
