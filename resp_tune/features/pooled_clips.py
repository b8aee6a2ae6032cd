"""Pool an encoder's frames over clips: what a head is trained on."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from resp_tune.config import EncoderPool, TrialConfig
from resp_tune.features.cache import FeatureCaches, open_encoder_cache
from resp_tune.features.encoder_frames import EncoderFrames

MOST = 8  # sets of front ends whose pooled clips a process remembers


@dataclass(frozen=True)
class PooledClips:
    """The features of clips, float32 `[clips, dim]`: of all speeds, one after the other.

    `key` is the same for the same features of the same clips, and for no others.
    """

    values: torch.Tensor
    key: str


def pooled_clips(
    caches: FeatureCaches,
    config: TrialConfig,
    clips: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    *,
    workers: int,
) -> PooledClips:
    """Return the features of clips by the encoder of `config`, after filling missing caches.

    `clips`: index of the recording in `caches`, start and end in s, each `[clips]`. A process pools
    a clip once, whatever fold it is in.
    """
    folders = caches.filled_folders(config.front_ends, workers=workers)
    return _remembered(folders, config.encoder_pool).of(clips)


class _Pool:
    """The pooled clips of some caches, each computed when it is first asked for."""

    def __init__(self, folders: Sequence[Path], pool: EncoderPool) -> None:
        self.frames = [open_encoder_cache(folder) for folder in folders]
        self.pool, self.name = pool, f"{pool} {' '.join(folder.name for folder in folders)}"
        self.row: dict[tuple[int, float, float], int] = {}
        self.values = torch.empty(0, 0)

    def of(self, clips: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> PooledClips:
        index, start, end = clips
        wanted = list(zip(index.tolist(), start.tolist(), end.tolist(), strict=True))
        if new := list(dict.fromkeys(clip for clip in wanted if clip not in self.row)):
            self._add(new)
        rows = torch.tensor([self.row[clip] for clip in wanted], dtype=torch.int64)
        content = np.array(wanted, dtype=np.float64).tobytes()
        key = hashlib.sha256(self.name.encode() + content).hexdigest()
        return PooledClips(self.values[rows], key)

    def _add(self, clips: Sequence[tuple[int, float, float]]) -> None:
        columns = torch.tensor(clips, dtype=torch.float64)
        index, start, end = columns[:, 0].long(), columns[:, 1], columns[:, 2]
        features = torch.cat(
            [pool_frames(f, self.pool, index, start, end) for f in self.frames], dim=1
        )
        for clip in clips:
            self.row[clip] = len(self.row)
        self.values = torch.cat([self.values, features]) if len(self.values) else features


_POOLS: OrderedDict[tuple[tuple[Path, ...], EncoderPool], _Pool] = OrderedDict()


def _remembered(folders: Sequence[Path], pool: EncoderPool) -> _Pool:
    key = (tuple(folders), pool)
    if key not in _POOLS:
        _POOLS[key] = _Pool(folders, pool)
        while len(_POOLS) > MOST:
            _POOLS.popitem(last=False)
    _POOLS.move_to_end(key)
    return _POOLS[key]


def pool_frames(
    frames: EncoderFrames,
    pool: EncoderPool,
    index: torch.Tensor,
    start: torch.Tensor,
    end: torch.Tensor,
) -> torch.Tensor:
    """Return the frames of each clip pooled over time, float32 `[clips, dim or 2 · dim]`.

    A clip's frames are those with their middle in it, else the one that is nearest to its middle.
    `mean+sd` gives all means, then all population standard deviations.
    """
    bounds = clip_rows(frames, index, start, end).tolist()
    size = frames.values.shape[1]
    pooled = torch.empty(len(bounds), 2 * size if pool == "mean+sd" else size)
    for out, (first, last) in zip(pooled, bounds, strict=True):
        x = frames.values[first:last].float()
        if pool == "max":
            out.copy_(x.amax(0))
        elif pool == "mean":
            out.copy_(x.mean(0))
        else:
            sd, mean = torch.std_mean(x, dim=0, correction=0)
            out[:size], out[size:] = mean, sd
    return pooled


def clip_rows(
    frames: EncoderFrames, index: torch.Tensor, start: torch.Tensor, end: torch.Tensor
) -> torch.Tensor:
    """Return the first row of each clip and the one after its last, int64 `[clips, 2]`."""
    # Centres ascend within a recording; an offset for each recording makes them ascend overall.
    span = float(torch.cat([frames.centre.double(), end.double()]).max()) + 1
    recording = torch.repeat_interleave(torch.arange(len(frames.count)), frames.count)
    times = frames.centre.double() + recording * span
    offset = index * span
    first = torch.searchsorted(times, start + offset)
    last = torch.searchsorted(times, end + offset)
    own_first, own_last = frames.first[index], frames.first[index] + frames.count[index] - 1
    # Between two frames, the nearer of them; before the first and after the last, that one.
    middle = (start + end) / 2 + offset
    after = torch.searchsorted(times, middle).clamp(min=own_first, max=own_last)
    before = (after - 1).clamp(min=own_first)
    nearest = torch.where(middle - times[before] < times[after] - middle, before, after)
    empty = first >= last
    return torch.stack(
        [torch.where(empty, nearest, first), torch.where(empty, nearest + 1, last)], dim=1
    )
