"""Draw augmentation parameters, seeded and on the CPU; `batches` applies them.

Lengths are in frames. The parameters of a whole epoch are drawn at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from resp_tune.config import TrialConfig


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
    freq = _masks(n, config.n_freq_masks, config.n_mels, config.max_mask_pct, generator)
    time = _masks(n, config.n_time_masks, length, config.max_mask_pct, generator)
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


def _masks(
    items: int, masks: int, size: int, fraction: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw starts and widths as torchaudio's `mask_along_axis` does, cut to whole bins."""
    width = torch.rand(items, masks, generator=generator) * (fraction * size)
    start = torch.rand(items, masks, generator=generator) * (size - width)
    return start.long(), width.long()
