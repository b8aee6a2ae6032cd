"""The network of the notebook: four strided convolutions, two global pools, three linear layers."""

from __future__ import annotations

import itertools

import torch
from torch import nn

from resp_tune.training.networks.batch_norm import BatchNorm


class SoundNet(nn.Module):
    """Compute logits `[items, classes]` of log-mel clips `[items, 1, frames, n_mels]`.

    `depth` blocks of Conv(stride 2) → ReLU → BatchNorm with 1, 2, 4 and then 8 times `width`
    channels; global maximum and mean, concatenated; three times BatchNorm → Dropout → Linear with
    nothing between them, as in the notebook (`width` 8, `depth` 4). With `channels=2` the first
    convolution has two input channels, both of which are the one clip. With `bands` the clips are
    first standardised band by band, with the statistics that `bands.fit` has set.
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
        self.bands = None if bands is None else Standardize(bands)
        sizes = [channels, *(width * min(2**block, 8) for block in range(depth))]
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2d(c_in, c_out, 3, stride=2, padding=1)
                    if block
                    else SameInputConv(c_in, c_out, 5),
                    nn.ReLU(),
                    BatchNorm(c_out),
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
        """Return the logits of a batch."""
        if self.bands is not None:
            x = self.bands(x)
        x = self.blocks(x)
        pooled = torch.cat([x.amax(dim=(2, 3)), x.mean(dim=(2, 3))], dim=1)
        return self.head(pooled)  # type: ignore[no-any-return]  # torch types modules as Any


class SameInputConv(nn.Conv2d):
    """A stride-2 convolution whose input channels are copies of one, equal to `Conv2d` on these.

    Two identities make it fast, its gradients included. A convolution of copies equals one of the
    original with the kernels summed. A stride-2 kernel on one channel equals a stride-1 kernel of
    half the size on the four channels of 2 × 2 blocks: for one channel there is no fast kernel, and
    its output would not be channels-last, nor then the rest of the network. The kernel's size must
    be 4 n + 1, so that half of it is whole blocks; no gradient reaches the input.
    """

    def __init__(self, c_in: int, c_out: int, kernel: int) -> None:
        super().__init__(c_in, c_out, kernel, stride=2, padding=kernel // 2)
        self.margin = kernel // 4  # blocks of zeros around the input

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """Convolve `input` `[items, 1, height, width]`, padded by half the kernel."""
        if torch.is_autocast_enabled(input.device.type):  # half the memory to rearrange
            input = input.to(torch.get_autocast_dtype(input.device.type))
        even = (self.kernel_size[0] + 1) // 2 * 2  # an even kernel is whole blocks
        kernel = self.weight.sum(dim=1, keepdim=True)
        kernel = nn.functional.pad(kernel, (0, even - self.kernel_size[0]) * 2)
        kernel = nn.functional.pixel_unshuffle(kernel, 2)
        blocks = two_by_two(input[:, 0])
        return nn.functional.conv2d(blocks, kernel, self.bias, padding=self.margin)


def two_by_two(x: torch.Tensor) -> torch.Tensor:
    """Rearrange `[items, height, width]` to 2 × 2 blocks, `[items, 4, ⌈height/2⌉, ⌈width/2⌉]`.

    Like `pixel_unshuffle` of `x`, zero-padded to even sizes, but channels-last and, by moving pairs
    of neighbours as one number, in a tenth of the time.
    """
    items, height, width = x.shape
    if width % 2:
        x = nn.functional.pad(x, (0, 1))
    pairs = x.contiguous().view(_PAIR[x.dtype])
    blocks = pairs.new_empty(items, (height + 1) // 2, pairs.shape[2], 2)
    blocks[..., 0] = pairs[:, 0::2]
    blocks[:, : height // 2, :, 1] = pairs[:, 1::2]
    if height % 2:
        blocks[:, -1, :, 1] = 0
    return blocks.view(x.dtype).permute(0, 3, 1, 2)


# Dtypes of twice the size, to move two numbers at once; nothing is computed with them.
_PAIR = {
    torch.float64: torch.complex128,
    torch.float32: torch.float64,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
}


class Standardize(nn.Module):
    """Standardise bands `[…, bands]` to zero mean and unit deviation, by statistics in buffers."""

    mean: torch.Tensor
    sd: torch.Tensor

    def __init__(self, bands: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(bands))
        self.register_buffer("sd", torch.ones(bands))

    def fit(self, mean: torch.Tensor, sd: torch.Tensor) -> None:
        """Set the statistics, float `[bands]`, of the training split."""
        self.mean.copy_(mean)
        self.sd.copy_(sd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the standardised bands."""
        return (x - self.mean) / self.sd
