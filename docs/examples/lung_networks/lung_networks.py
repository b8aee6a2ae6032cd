"""A network for resp_tune: convolutions over time, with the mel bands as input channels."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from resp_tune.config import TrialConfig


class TemporalNet(nn.Module):
    """Compute logits `[items, classes]` of log-mel clips `[items, 1, frames, bands]`."""

    def __init__(self, classes: int, bands: int, channels: int, depth: int, dropout: float) -> None:
        super().__init__()
        sizes = [bands, *[channels] * depth]
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv1d(c_in, c_out, 5, stride=2, padding=2), nn.BatchNorm1d(c_out), nn.ReLU()
                )
                for c_in, c_out in itertools.pairwise(sizes)
            )
        )
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(channels, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of a batch."""
        x = self.blocks(x[:, 0].transpose(1, 2))
        return self.head(x.mean(dim=2))


def make_temporal(classes: int, config: TrialConfig) -> TemporalNet:
    """Return the untrained network of a trial config."""
    return TemporalNet(
        classes,
        bands=config.n_mels,
        channels=4 * config.width,
        depth=config.depth,
        dropout=config.dropout,
    )
