"""Small feature stores of noise, for the tests of the store and of its processes."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from resp_tune.config import FrontEnd
from resp_tune.features import cache
from resp_tune.features.cache import AudioSource, FeatureCaches, Progress
from resp_tune.features.logmel import SILENCE_DB, log_mels
from support.front_ends import SMALL

COARSE = dataclasses.replace(SMALL, n_mels=16)
OTHER_STFT = dataclasses.replace(SMALL, n_fft=512)
PLENTY = 10**9


def noise(seed: int, rate: int, resampling: str = "kaiser") -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.1 * torch.randn(rate // 2 + 100 * seed, generator=generator)


def recordings(
    n: int = 4, load: Callable[[int, int, str], torch.Tensor] = noise
) -> list[AudioSource]:
    return [AudioSource(f"r{i}", f"digest{i}", partial(load, i)) for i in range(n)]


def expected(n: int, front_end: FrontEnd) -> torch.Tensor:
    mels = [log_mels(noise(i, front_end.sample_rate), [front_end])[0].half() for i in range(n)]
    silence = torch.full((1, front_end.n_mels), SILENCE_DB, dtype=torch.float16)
    return torch.cat([*mels, silence])


class Filled(NamedTuple):
    folders: dict[FrontEnd, Path]
    computed: tuple[FrontEnd, ...]


def fill(
    root: Path,
    sources: Sequence[AudioSource],
    front_ends: Sequence[FrontEnd],
    *,
    limit_bytes: int,
    workers: int = 1,
    progress: Progress | None = None,
) -> Filled:
    """Fill the caches of `sources` below `root`; return their folders and those computed."""
    caches = FeatureCaches(root, tuple(sources), limit_bytes)
    computed = caches.fill(front_ends, workers=workers, progress=progress)
    return Filled({f: caches.folder(f) for f in front_ends}, computed)


def one(root: Path, front_end: FrontEnd = SMALL, n: int = 4) -> Filled:
    return fill(root, recordings(n), [front_end], limit_bytes=PLENTY)


def check(filled: Filled, front_end: FrontEnd = SMALL, n: int = 4) -> None:
    """What is on disk is what was asked for, and nothing lies beside it."""
    folder = filled.folders[front_end]
    on_disk = torch.from_numpy(np.fromfile(folder / "frames.f16", dtype=np.float16))
    assert torch.equal(on_disk.view(-1, front_end.n_mels), expected(n, front_end))
    assert not list(folder.parent.glob("*.part"))
    assert sorted(p.name for p in folder.iterdir()) == ["frames.f16", "index.json"]


def aged(root: Path, front_ends: Sequence[FrontEnd]) -> list[Path]:
    """Stores of these front ends, the first used longest ago, made by a process that is gone."""
    folders = [one(root, f).folders[f] for f in front_ends]
    cache._PINNED.clear()
    for age, folder in zip(range(len(folders), 0, -1), folders, strict=True):
        os.utime(folder / "index.json", (time.time() - 3600 * age,) * 2)
    return folders


SAME_SIZE = [dataclasses.replace(SMALL, f_min=f) for f in (10.0, 20.0, 30.0, 40.0)]


def limit_for(stores: int) -> int:
    return stores * expected(4, SMALL).numel() * 2
