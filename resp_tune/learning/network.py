"""The notebook's network: four strided convolutions, two global pools, three linear layers."""

from __future__ import annotations

import itertools

import torch
from torch import nn


class SoundNet(nn.Module):
    """Class scores (logits) `[items, classes]` of log-mel clips `[items, 1, frames, n_mels]`.

    Blocks of Conv(stride 2) → ReLU → BatchNorm with `width`, 2, 4 and 8 times `width` channels;
    global max and mean side by side; three of BatchNorm → Dropout → Linear with nothing between
    them, as in the notebook (whose `width` is 8). With `channels=2` the first convolution has two
    input channels that both see the one clip.
    """

    def __init__(self, classes: int, *, width: int, dropout: float, channels: int = 1) -> None:
        super().__init__()
        sizes = [channels, width, 2 * width, 4 * width, 8 * width]
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(conv(c_in, c_out, kernel), nn.ReLU(), nn.BatchNorm2d(c_out))
                for conv, c_in, c_out, kernel in zip(
                    (_first_conv, _conv, _conv, _conv), sizes, sizes[1:], (5, 3, 3, 3), strict=False
                )
            )
        )
        layers = [16 * width, 32 * width, 16 * width, classes]
        self.head = nn.Sequential(
            *(
                nn.Sequential(nn.BatchNorm1d(n_in), nn.Dropout(dropout), nn.Linear(n_in, n_out))
                for n_in, n_out in itertools.pairwise(layers)
            )
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of a batch."""
        x = self.blocks(x)
        pooled = torch.cat([x.amax(dim=(2, 3)), x.mean(dim=(2, 3))], dim=1)
        return self.head(pooled)  # type: ignore[no-any-return]  # torch types modules as Any


class SameInputConv(nn.Conv2d):
    """A convolution whose input channels are copies of one: computed once, with the kernels summed.

    Equal to `Conv2d` on the repeated input, gradients included, at the cost of one channel.
    """

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The convolution of `input` `[items, 1, …]` repeated to the layer's input channels."""
        summed = self.weight.sum(dim=1, keepdim=True)
        return nn.functional.conv2d(input, summed, self.bias, self.stride, self.padding)


def _first_conv(c_in: int, c_out: int, kernel: int) -> nn.Conv2d:
    return SameInputConv(c_in, c_out, kernel, stride=2, padding=kernel // 2)


def _conv(c_in: int, c_out: int, kernel: int) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, kernel, stride=2, padding=kernel // 2)
