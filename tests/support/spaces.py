"""Search spaces written by a test, and studies to try them on."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import optuna
import yaml

from resp_tune.config import TrialConfig
from resp_tune.space.search_space import SearchSpace, load_space


def new_study(seed: int = 0) -> optuna.Study:
    return optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))


def space_of(folder: Path, parameters: dict[str, Any], **more: Any) -> SearchSpace:
    path = folder / "space.yaml"
    path.write_text(yaml.safe_dump({"parameters": parameters, **more}, sort_keys=False))
    return load_space(str(path))


def conditional_space(folder: Path) -> SearchSpace:
    """Return the wide space with a higher sample rate where no band is cut off."""
    content = yaml.safe_load(Path("search_spaces/wide.yaml").read_text())
    content["parameters"] |= {
        "f_max": {"type": "categorical", "values": [1000.0, 1500.0, None]},
        "sample_rate": {
            "type": "ordinal",
            "values": [4000, 8000, 16_000],
            "with": {"n_fft": [256, 512, 1024], "hop_length": [128, 256, 512]},
            "when": {"f_max": None},
        },
    }
    return space_of(folder, **content)


def all_configs(space: SearchSpace) -> list[TrialConfig]:
    """Every config of a space of whole numbers and choices, through all of its branches."""
    configs = []

    def note(trial: optuna.Trial) -> float:
        configs.append(space.suggest(trial))
        return 0.0

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.BruteForceSampler(seed=0)
    optuna.create_study(sampler=sampler).optimize(note)
    return configs
