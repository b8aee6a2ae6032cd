"""Batches of clips from frames: one gather by row index, then the clip's clamp, scale and masks."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from resp_tune.config import TrialConfig
from resp_tune.features.augment import Draws
from resp_tune.features.frames import Frames


@dataclass(frozen=True)
class ClipFrames:
    """Which rows of `frames` belong to each clip: int64 `[clips]`, on the CPU for drawing.

    `level`: mean and standard deviation of each clip's recording, float32 `[clips, 2]`, where
    `normalise: recording` asks for them.
    """

    frames: Frames
    first: torch.Tensor
    count: torch.Tensor
    level: torch.Tensor | None = None

    def over(self, frames: Frames) -> ClipFrames:
        """The same clips over `frames`, a copy of theirs on another device."""
        device = frames.values.device
        level = None if self.level is None else self.level.to(device)
        return ClipFrames(frames, self.first.to(device), self.count.to(device), level)

    def prepared(self, config: TrialConfig) -> ClipFrames:
        """The same clips with all that `config.normalise` needs to know of them."""
        if config.normalise != "recording":
            return self
        recordings = torch.searchsorted(self.frames.first, self.first, right=True) - 1
        which, of_clip = torch.unique(recordings, return_inverse=True)
        levels = [_level(self.frames, int(n), config.top_db) for n in which]
        return dataclasses.replace(self, level=torch.stack(levels)[of_clip])


def _level(frames: Frames, recording: int, top_db: float) -> torch.Tensor:
    first, count = int(frames.first[recording]), int(frames.count[recording])
    x = frames.values[first : first + count].float()
    x.clamp_(min=x.max() - top_db)
    return torch.stack([x.mean(), x.std().clamp(min=1e-3)])


def make_batch(clips: ClipFrames, draws: Draws, config: TrialConfig) -> torch.Tensor:
    """The items of `draws` as float32 `[items, 1, frames, n_mels]`, on the frames' device.

    Time stands before frequency because the frames lie so on disk: a batch is one gather of rows.
    Order as in the notebook: pad or crop, shift, clamp by `top_db`, mask with the mean of the clip.
    """
    values = clips.frames.values
    rows = _rows(clips, draws, config)
    x = values.index_select(0, rows.flatten()).float().view(*rows.shape, values.shape[1])
    loudest = x.amax(dim=(1, 2), keepdim=True)
    x = torch.maximum(x, loudest - config.top_db)
    fill = x.mean(dim=(1, 2), keepdim=True)
    if config.normalise == "clip":
        x = (x - fill) / x.std(dim=(1, 2), keepdim=True).clamp(min=1e-3)
        fill = torch.zeros_like(fill)
    elif config.normalise == "recording":
        if clips.level is None:
            raise ValueError("normalise 'recording' needs `ClipFrames.prepared`")
        mean, sd = clips.level[draws.clip].T[:, :, None, None]
        x, fill = (x - mean) / sd, (fill - mean) / sd
    masked_frames = _covered(draws.time_start, draws.time_width, x.shape[1])
    masked_bands = _covered(draws.freq_start, draws.freq_width, x.shape[2])
    if masked_frames is not None:
        x = torch.where(masked_frames[:, :, None], fill, x)
    if masked_bands is not None:
        x = torch.where(masked_bands[:, None, :], fill, x)
    return x[:, None]


def _rows(clips: ClipFrames, draws: Draws, config: TrialConfig) -> torch.Tensor:
    """Row of `frames.values` behind each frame of each item, int64 `[items, clip_frames]`."""
    length = config.clip_frames
    count, first = clips.count[draws.clip, None], clips.first[draws.clip, None]
    t = torch.arange(length, device=count.device)
    position = (t - draws.shift[:, None]) % length  # undo the roll: out[t] = in[t − shift]
    source = position - draws.pad[:, None] + draws.crop[:, None]
    if config.pad == "repeat":
        return first + source % count
    inside = (source >= 0) & (source < count)
    return torch.where(inside, first + source, clips.frames.silence)


def _covered(start: torch.Tensor, width: torch.Tensor, size: int) -> torch.Tensor | None:
    """Which positions of an axis any mask covers, bool `[items, size]`; None without masks."""
    if start.shape[1] == 0:
        return None
    at = torch.arange(size, device=start.device)
    return ((at >= start[..., None]) & (at < (start + width)[..., None])).any(dim=1)
