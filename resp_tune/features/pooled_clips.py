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
from resp_tune.features.parallel import one_thread

MOST_BYTES = 1 << 30  # of pooled clips that a process remembers, of the caches last used


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
    wanted = list(zip(*(column.tolist() for column in clips), strict=True))
    values = torch.cat([_pool_of(f, config.encoder_pool).of(wanted) for f in folders], dim=1)
    name = " ".join([config.encoder_pool, *(folder.name for folder in folders)])
    content = np.array(wanted, dtype=np.float64).tobytes()
    return PooledClips(values, hashlib.sha256(name.encode() + content).hexdigest())


Clip = tuple[int, float, float]  # index of its recording, start and end in s


class _Pool:
    """The pooled clips of one cache, each computed when it is first asked for."""

    def __init__(self, folder: Path, pool: EncoderPool) -> None:
        self.frames, self.pool = open_encoder_cache(folder), pool
        self.row: dict[Clip, int] = {}
        self.values = torch.empty(0, 0)

    def of(self, clips: Sequence[Clip]) -> torch.Tensor:
        """Return the features of `clips`, float32 `[clips, columns]`."""
        if new := list(dict.fromkeys(clip for clip in clips if clip not in self.row)):
            columns = torch.tensor(new, dtype=torch.float64)
            index, start, end = columns[:, 0].long(), columns[:, 1], columns[:, 2]
            with one_thread():
                features = pool_frames(self.frames, self.pool, index, start, end)
            self.values = torch.cat([self.values, features]) if self.row else features
            self.row |= {clip: len(self.row) + i for i, clip in enumerate(new)}
        return self.values[[self.row[clip] for clip in clips]]


_POOLS: OrderedDict[tuple[Path, EncoderPool], _Pool] = OrderedDict()


def _pool_of(folder: Path, pool: EncoderPool) -> _Pool:
    """Return what the process remembers of a cache, the caches last used first."""
    if (folder, pool) not in _POOLS:
        _POOLS[folder, pool] = _Pool(folder, pool)
        while len(_POOLS) > 1 and sum(p.values.nbytes for p in _POOLS.values()) > MOST_BYTES:
            _POOLS.popitem(last=False)
    _POOLS.move_to_end((folder, pool))
    return _POOLS[folder, pool]


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
            continue
        mean = torch.mean(x, dim=0, out=out[:size])
        if pool == "mean+sd":  # `torch.std_mean` takes four times as long as all of this
            out[size:] = x.sub_(mean).square_().mean(0).sqrt_()
    return pooled


def clip_rows(
    frames: EncoderFrames, index: torch.Tensor, start: torch.Tensor, end: torch.Tensor
) -> torch.Tensor:
    """Return the first row of each clip and the one after its last, int64 `[clips, 2]`."""
    # Centres ascend within a recording; an offset for each recording makes them ascend overall.
    span = float(frames.centre.max()) + 1
    start, end = start.clamp(max=span), end.clamp(max=span)  # may be infinite
    recording = torch.repeat_interleave(torch.arange(len(frames.count)), frames.count)
    times = frames.centre.double() + recording.double() * span
    offset = index.double() * span
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
