"""Make batches of clips, in two steps.

First the parameters of a whole epoch's augmentation are drawn, seeded and on the CPU, in frames.
Then, for each batch, frames are gathered by row index, and each clip clamped, normalised, masked.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from resp_tune.config import FrontEnd, TrialConfig
from resp_tune.features.logmel import Frames
from resp_tune.features.spec_augment import apply_masks, draw_masks


@dataclass(frozen=True)
class ClipIndex:
    """The rows of `frames` of each clip: int64 `[clips]`, kept on the CPU for drawing.

    `level`: mean and standard deviation of each clip's recording, float32 `[clips, 2]`, if
    `normalise` is `recording`.
    """

    frames: Frames
    first: torch.Tensor
    count: torch.Tensor
    level: torch.Tensor | None = None

    def over(self, frames: Frames) -> ClipIndex:
        """Return the same clips over `frames`, a copy of theirs on another device."""
        device = frames.values.device
        level = None if self.level is None else self.level.to(device)
        return ClipIndex(frames, self.first.to(device), self.count.to(device), level)

    def with_level(self, config: TrialConfig) -> ClipIndex:
        """Return the same clips with the `level` that `config.normalise` needs."""
        if config.normalise != "recording":
            return self
        recordings = torch.searchsorted(self.frames.first, self.first, right=True) - 1
        which, of_clip = torch.unique(recordings, return_inverse=True)
        levels = []
        for first, count in zip(self.frames.first[which], self.frames.count[which], strict=True):
            x = self.frames.values[first : first + count].float()
            x.clamp_(min=x.max() - config.top_db)
            levels.append(torch.stack([x.mean(), x.std().clamp(min=1e-3)]))
        return dataclasses.replace(self, level=torch.stack(levels)[of_clip])


def cut_clips(
    frames: Frames, front_end: FrontEnd, index: torch.Tensor, start: torch.Tensor, end: torch.Tensor
) -> ClipIndex:
    """Return the clips from `start` to `end` seconds of the recordings at `index` in `frames`.

    All three are `[clips]`. A clip has at least one frame.
    """
    rate = front_end.sample_rate / front_end.hop_length
    rows = frames.count[index]
    first = torch.minimum((start * rate).round().long(), rows - 1)
    last = torch.minimum((end * rate).round().long() + 1, rows)
    return ClipIndex(frames, frames.first[index] + first, (last - first).clamp(min=1))


def band_statistics(clips: ClipIndex, top_db: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation of each band over `clips`, float32 `[n_mels]`.

    Each clip is first clamped to `top_db` below its loudest bin, as in a batch.
    """
    rows, sums, squares = 0, torch.tensor(0.0), torch.tensor(0.0)
    for first, count in zip(clips.first.tolist(), clips.count.tolist(), strict=True):
        x = clips.frames.values[first : first + count].double()
        x.clamp_(min=x.max() - top_db)
        rows, sums, squares = rows + count, sums + x.sum(0), squares + x.square().sum(0)
    mean = sums / rows
    variance = (squares / rows - mean.square()).clamp(min=0)
    return mean.float(), variance.sqrt().clamp(min=1e-3).float()


@dataclass(frozen=True)
class AugmentParams:
    """The augmentation of each item of an epoch, int64 `[items]`; masks `[items, masks]`.

    Item `i` shows clip `clip[i]`, from its frame `crop[i]`, after `pad[i]` frames of padding,
    rolled forward by `shift[i]`, with bands and frames `[start, start + width)` masked.
    """

    clip: torch.Tensor
    crop: torch.Tensor
    pad: torch.Tensor
    shift: torch.Tensor
    freq_start: torch.Tensor
    freq_width: torch.Tensor
    time_start: torch.Tensor
    time_width: torch.Tensor

    def __len__(self) -> int:
        return len(self.clip)

    def __getitem__(self, items: slice) -> AugmentParams:
        return AugmentParams(*(value[items] for value in vars(self).values()))

    def to(self, device: torch.device) -> AugmentParams:
        """Return the same parameters on `device`, copied asynchronously."""
        return AugmentParams(
            *(value.to(device, non_blocking=True) for value in vars(self).values())
        )


def augment_params(
    clip: torch.Tensor, frames: torch.Tensor, config: TrialConfig, generator: torch.Generator
) -> AugmentParams:
    """Draw crop or pad offset, shift and masks at random for items that show `clip`.

    `clip`: int64 `[items]`; `frames`: int64 `[clips]`, the length of every clip.
    """
    n, length = len(clip), config.clip_frames
    missing = length - frames[clip]  # above 0: too short, padded; below 0: too long, cropped
    pad = _uniform_to(missing.clamp(min=0), generator)
    crop = _uniform_to((-missing).clamp(min=0), generator)
    shift = (torch.rand(n, generator=generator) * config.time_shift * length).long()
    freq = draw_masks(n, config.n_freq_masks, config.n_mels, config.max_mask_pct, generator)
    time = draw_masks(n, config.n_time_masks, length, config.max_mask_pct, generator)
    return AugmentParams(
        clip, crop if config.crop == "random" else crop * 0, pad, shift, *freq, *time
    )


def eval_params(frames: torch.Tensor, config: TrialConfig) -> AugmentParams:
    """Return the parameters for evaluation: every clip without augmentation.

    With `crop: start` there is one item per clip; with `crop: random` as many evenly spaced crops
    as cover it, whose probabilities are averaged. Short clips are centred in the padding.
    """
    length = config.clip_frames
    excess = (frames - length).clamp(min=0)
    crops = -(-excess // length) + 1 if config.crop == "random" else torch.ones_like(frames)
    clip = torch.arange(len(frames)).repeat_interleave(crops)
    nth = torch.arange(len(clip)) - (crops.cumsum(0) - crops)[clip]
    crop = excess[clip] * nth // (crops[clip] - 1).clamp(min=1)
    pad = (length - frames[clip]).clamp(min=0) // 2
    none = torch.zeros(len(clip), 0, dtype=torch.int64)
    return AugmentParams(clip, crop, pad, torch.zeros_like(clip), none, none, none, none)


def _uniform_to(high: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Draw integers uniform in 0…high, both included."""
    return (torch.rand(len(high), generator=generator) * (high + 1)).long()


def make_batch(clips: ClipIndex, draws: AugmentParams, config: TrialConfig) -> torch.Tensor:
    """Return the items of `draws`, `[items, 1, frames, n_mels]`, on the frames' device.

    They are computed in float32, and rounded to bfloat16 if that is what the network does next.
    Time comes before frequency, as in the frames on disk: a batch is one gather of rows. The order
    is the notebook's: pad or crop, shift, clamp by `top_db`, mask with the mean of the clip.
    """
    rows = _rows(clips, draws, config)
    bands = clips.frames.values.shape[1]
    # The dtype of the first convolution, unless another step comes before it.
    is_next = config.precision == "bfloat16" and config.normalise != "band" and not config.mixup
    dtype = torch.bfloat16 if is_next else torch.float32
    x = torch.empty(*rows.shape, bands, dtype=dtype, device=rows.device)
    # A few items at a time stay in the CPU's cache from the gather to the masks.
    size = len(draws) if x.is_cuda else max(1, _IN_CACHE // max(4 * x[0].numel(), 1))
    rounded = x.dtype != torch.float32
    few = torch.empty(min(size, len(draws)), *x.shape[1:], device=x.device) if rounded else x
    for start in range(0, len(draws), size):
        part = slice(start, start + size)
        exact = few[: len(x[part])] if rounded else x[part]
        _fill(exact, rows[part], clips, draws[part], config)
        if rounded:
            x[part] = exact
    return x[:, None]


_IN_CACHE = 500_000  # bytes, about a core's second-level cache


def _fill(
    x: torch.Tensor, rows: torch.Tensor, clips: ClipIndex, draws: AugmentParams, config: TrialConfig
) -> None:
    """Write the items of `draws` into `x`, `[items, frames, n_mels]`."""
    x.copy_(clips.frames.values.index_select(0, rows.flatten()).view_as(x))
    loudest = x.amax(dim=(1, 2), keepdim=True)
    torch.maximum(x, loudest - config.top_db, out=x)
    fill = x.mean(dim=(1, 2), keepdim=True)
    if config.normalise == "clip":
        x.sub_(fill)
        # The mean is zero now; `std` and a division take ten times as long.
        norm = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True)
        x.mul_(1 / (norm / max(x[0].numel() - 1, 1) ** 0.5).clamp(min=1e-3))
        fill = torch.zeros_like(fill)
    elif config.normalise == "recording":
        if clips.level is None:
            raise ValueError("normalise 'recording' needs `ClipIndex.with_level`")
        mean, sd = clips.level[draws.clip].T[:, :, None, None]
        x.sub_(mean).mul_(1 / sd)
        fill = (fill - mean) / sd
    frames, bands = (draws.time_start, draws.time_width), (draws.freq_start, draws.freq_width)
    apply_masks(x, frames, bands, fill)


def _rows(clips: ClipIndex, draws: AugmentParams, config: TrialConfig) -> torch.Tensor:
    """Return the row of `frames.values` of each frame of each item, int64 `[items, frames]`."""
    length = config.clip_frames
    count, first = clips.count[draws.clip, None], clips.first[draws.clip, None]
    t = torch.arange(length, device=count.device)
    position = (t - draws.shift[:, None]) % length  # undo the roll: out[t] = in[t − shift]
    source = position - draws.pad[:, None] + draws.crop[:, None]
    if config.pad == "repeat":
        return first + source % count
    inside = (source >= 0) & (source < count)
    return torch.where(inside, first + source, clips.frames.silence)
