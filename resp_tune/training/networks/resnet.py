"""A small residual network, the alternative to the notebook's that comes with the package."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from resp_tune.config import TrialConfig
from resp_tune.training.networks.network import BatchNorm, SameInputConv


class ResNet(nn.Module):
    """Compute logits `[items, classes]` of log-mel clips `[items, 1, frames, n_mels]`.

    A residual network of basic blocks (He et al., CVPR 2016). A strided convolution and `depth` - 1
    residual blocks, each of which halves frames and bands, have 1, 2, 4 and then 8 times `width`
    channels; then the global mean, dropout and one linear layer. `channels`: as in `SoundNet`.
    """

    def __init__(
        self, classes: int, *, width: int, dropout: float, channels: int = 1, depth: int = 4
    ) -> None:
        super().__init__()
        sizes = [width * min(2**block, 8) for block in range(depth)]
        self.stem = nn.Sequential(SameInputConv(channels, width, 5), BatchNorm(width), nn.ReLU())
        self.blocks = nn.Sequential(*(ResidualBlock(*pair) for pair in itertools.pairwise(sizes)))
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(sizes[-1], classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of a batch."""
        x = self.blocks(self.stem(x))
        return self.head(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]  # torch types modules as Any


class ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions, the first with stride 2, beside a 1 × 1 convolution with stride 2."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(c_in, c_out, 3, stride=2, padding=1, bias=False),
            BatchNorm(c_out),
            nn.ReLU(),
            nn.Conv2d(c_out, c_out, 3, padding=1, bias=False),
            BatchNorm(c_out),
        )
        self.shortcut = nn.Sequential(
            nn.Conv2d(c_in, c_out, 1, stride=2, bias=False), BatchNorm(c_out)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return `[items, c_out, ⌈height/2⌉, ⌈width/2⌉]` of `[items, c_in, height, width]`."""
        return torch.relu(self.residual(x) + self.shortcut(x))


def make_resnet(classes: int, config: TrialConfig) -> ResNet:
    """Return the residual network of a config."""
    return ResNet(
        classes,
        width=config.width,
        dropout=config.dropout,
        channels=config.channels,
        depth=config.depth,
    )
