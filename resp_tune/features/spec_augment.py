"""Mask bands and frames of log-mel clips: SpecAugment (Park et al., Interspeech 2019)."""

from __future__ import annotations

import torch

Masks = tuple[torch.Tensor, torch.Tensor]  # start and width of each mask, int64 `[items, masks]`


def draw_masks(
    items: int, masks: int, size: int, fraction: float, generator: torch.Generator
) -> Masks:
    """Draw masks of an axis with `size` bins, each at most `fraction` of it wide.

    They are drawn as torchaudio's `mask_along_axis` does, and cut to whole bins.
    """
    width = torch.rand(items, masks, generator=generator) * (fraction * size)
    start = torch.rand(items, masks, generator=generator) * (size - width)
    return start.long(), width.long()


def apply_masks(x: torch.Tensor, frames: Masks, bands: Masks, fill: torch.Tensor) -> None:
    """Write `fill` `[items, 1, 1]` into the masked `frames` and `bands` of `x`, in place.

    `x` is `[items, frames, bands]`.
    """
    if x.is_cuda:
        _mask_all(x, frames, bands, fill)
    else:
        _mask_each(x, frames, bands, fill)


def _mask_all(x: torch.Tensor, frames: Masks, bands: Masks, fill: torch.Tensor) -> None:
    """Apply all masks of all items in a few passes, as a GPU must not wait for the CPU."""
    masked = _covered(*frames, x.shape[1])[:, :, None] | _covered(*bands, x.shape[2])[:, None, :]
    torch.where(masked, fill, x, out=x)


def _covered(start: torch.Tensor, width: torch.Tensor, size: int) -> torch.Tensor:
    """Return which positions of an axis any mask covers, bool `[items, size]`."""
    at = torch.arange(size, device=start.device)
    return ((at >= start[..., None]) & (at < (start + width)[..., None])).any(dim=1)


def _mask_each(x: torch.Tensor, frames: Masks, bands: Masks, fill: torch.Tensor) -> None:
    """Write one slice per mask, and nothing else."""
    for axis, (start, width) in enumerate((frames, bands)):
        for item, (starts, widths) in enumerate(zip(start.tolist(), width.tolist(), strict=True)):
            for first, length in zip(starts, widths, strict=True):
                x[item].narrow(axis, first, length).copy_(fill[item])
