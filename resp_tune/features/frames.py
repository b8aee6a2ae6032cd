"""The frames of many recordings as one tensor: what the feature store gives and batches index."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from resp_tune.features.logmel import SILENCE_DB


@dataclass(frozen=True)
class Frames:
    """Log-mel frames of recordings, end to end.

    `values`: float16 dB (or PCEN) `[rows, n_mels]`; the last row is silence, for padding.
    `first`, `count`: int64 `[recordings]`, the rows of each recording. `stems`: their names.
    """

    values: torch.Tensor
    first: torch.Tensor
    count: torch.Tensor
    stems: tuple[str, ...]

    @property
    def silence(self) -> int:
        """The row that holds silence."""
        return self.values.shape[0] - 1

    def to(self, device: torch.device) -> Frames:
        """These frames on `device`; on the CPU they stay where they are, memory-mapped."""
        return Frames(self.values.to(device), self.first, self.count, self.stems)


def join_frames(
    log_mels: Sequence[torch.Tensor], stems: Sequence[str], silence: float = SILENCE_DB
) -> Frames:
    """Frames from one `[frames, n_mels]` tensor a recording, in memory."""
    count = torch.tensor([len(m) for m in log_mels], dtype=torch.int64)
    last = torch.full((1, log_mels[0].shape[1]), silence)
    values = torch.cat([*log_mels, last]).to(torch.float16)
    return Frames(values, count.cumsum(0) - count, count, tuple(stems))
