"""The notebook's network: four strided convolutions, two global pools, three linear layers."""

from __future__ import annotations

import itertools

import torch
from torch import nn


class SoundNet(nn.Module):
    """Class scores (logits) `[items, classes]` of log-mel clips `[items, 1, frames, n_mels]`.

    `depth` blocks of Conv(stride 2) → ReLU → BatchNorm with `width`, 2, 4 and then 8 times `width`
    channels; global max and mean side by side; three of BatchNorm → Dropout → Linear with nothing
    between them, as in the notebook (whose `width` is 8 and `depth` 4). With `channels=2` the first
    convolution has two input channels that both see the one clip. With `bands` the clips are first
    standardised band by band, by what `bands.fit` was given.
    """

    def __init__(
        self,
        classes: int,
        *,
        width: int,
        dropout: float,
        channels: int = 1,
        depth: int = 4,
        bands: int | None = None,
    ) -> None:
        super().__init__()
        self.bands = None if bands is None else Standardise(bands)
        sizes = [channels, *(width * min(2**block, 8) for block in range(depth))]
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    _conv(c_in, c_out) if block else SameInputConv(c_in, c_out, 5),
                    nn.ReLU(),
                    nn.BatchNorm2d(c_out),
                )
                for block, (c_in, c_out) in enumerate(itertools.pairwise(sizes))
            )
        )
        last = sizes[-1]
        layers = [2 * last, 4 * last, 2 * last, classes]
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
        if self.bands is not None:
            x = self.bands(x)
        x = self.blocks(x)
        pooled = torch.cat([x.amax(dim=(2, 3)), x.mean(dim=(2, 3))], dim=1)
        return self.head(pooled)  # type: ignore[no-any-return]  # torch types modules as Any


class SameInputConv(nn.Conv2d):
    """A stride-2 convolution whose input channels are copies of one, equal to `Conv2d` on them.

    Two identities make it fast, gradients included. A convolution of copies is one of the original
    with the kernels summed. And a stride-2 kernel on one channel is a stride-1 kernel of half the
    size on the four channels of 2 × 2 blocks: no fast kernel exists for one channel, and its output
    would drag the whole network out of the channels-last layout.
    """

    def __init__(self, c_in: int, c_out: int, kernel: int) -> None:
        super().__init__(c_in, c_out, kernel, stride=2, padding=kernel // 2)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The convolution of `input` `[items, 1, height, width]`, padded by half the kernel."""
        pad, size = self.kernel_size[0] // 2, self.kernel_size[0]
        # An even kernel size, and room for the last stride.
        grown = (size + 1) // 2 * 2
        height, width = ((n + 1) // 2 * 2 + grown - 2 for n in input.shape[2:])
        margins = (pad, width - input.shape[3] - pad, pad, height - input.shape[2] - pad)
        padded = nn.functional.pad(input, margins)
        # `pixel_unshuffle` into the channels-last layout, in one copy.
        grid = padded.view(len(input), height // 2, 2, width // 2, 2)
        blocks = grid.permute(0, 1, 3, 2, 4).flatten(3).permute(0, 3, 1, 2)
        kernel = nn.functional.pad(self.weight.sum(dim=1, keepdim=True), (0, grown - size) * 2)
        kernel = nn.functional.pixel_unshuffle(kernel, 2)
        return nn.functional.conv2d(blocks, kernel, self.bias)


def _conv(c_in: int, c_out: int) -> nn.Conv2d:
    return nn.Conv2d(c_in, c_out, 3, stride=2, padding=1)


class Standardise(nn.Module):
    """Bands `[…, bands]` to zero mean and unit deviation by statistics that are kept as buffers."""

    mean: torch.Tensor
    sd: torch.Tensor

    def __init__(self, bands: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(bands))
        self.register_buffer("sd", torch.ones(bands))

    def fit(self, mean: torch.Tensor, sd: torch.Tensor) -> None:
        """Take the statistics, float `[bands]`, of the training side."""
        self.mean.copy_(mean)
        self.sd.copy_(sd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The standardised bands."""
        return (x - self.mean) / self.sd
