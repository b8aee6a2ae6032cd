"""The network of the notebook: four strided convolutions, two global pools, three linear layers.

Its layers of few channels are as fast on a CPU as those of many.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

MOMENTUM = 0.1  # torch's
COLUMNS = 128  # of a row; it fills the vector registers for every dtype


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


class BatchNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d`, in a fraction of the time on a CPU if there are few channels.

    torch's kernels process a vector of channels at a time, and 8 channels are a fraction of one
    vector. So k neighbouring positions of channels-last activations are viewed as k times as many
    channels of a k-th of the positions, which moves no number. The statistics of their k groups are
    merged: the mean of the means, and the mean of the variances plus the variance of the means.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__(channels, momentum=MOMENTUM)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise activations `[items, channels, height, width]`."""
        k = self._positions_a_row(input)
        if k == 1:
            return super().forward(input)
        items, channels, height, width = input.shape
        x = input.permute(0, 2, 3, 1).reshape(-1, k * channels)
        y = self._normalize(x, k)
        return y.view(items, height, width, channels).permute(0, 3, 1, 2)

    def _positions_a_row(self, x: Tensor) -> int:
        """Return how many positions make a row: a power of 2 that divides their number."""
        plain = x.device.type != "cpu" or torch.compiler.is_compiling()
        if plain or not x.is_contiguous(memory_format=torch.channels_last):
            return 1
        most = max(1, COLUMNS // self.num_features)
        return math.gcd(x.numel() // self.num_features, 1 << (most.bit_length() - 1))

    def _normalize(self, x: Tensor, k: int) -> Tensor:
        if not self.training:
            mean, variance = self.running_mean.repeat(k), self.running_var.repeat(k)
            weight, bias = self.weight.repeat(k), self.bias.repeat(k)
            return nn.functional.batch_norm(x, mean, variance, weight, bias, eps=self.eps)
        result: tuple[Tensor, ...] = _NormalizeFunction.apply(x, self.weight, self.bias, self.eps)
        y, mean, variance = result
        rows = x.numel() // self.num_features
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, MOMENTUM)
        self.running_var.lerp_(variance * (rows / (rows - 1)), MOMENTUM)
        return y


class _NormalizeFunction(torch.autograd.Function):
    """Normalise `x` `[rows, k * channels]`, and return it with each channel's mean and variance.

    The gradient, with N values a channel, x' = (x - mean) / sd, y = w x' + b and L the loss:

        dL/db = sum(dy),  dL/dw = sum(dy x')        sums over the N values
        dL/dx' = w dy
        dL/dx = (dL/dx' - mean(dL/dx') - x' mean(dL/dx' x')) / sd
              = w / sd (dy - dL/db / N - x' dL/dw / N)

    since mean and sd depend on every x: the second and third term remove from dL/dx' its mean and
    its part along x', the two directions of x that normalisation cancels. The sums run over all k
    groups of a channel. `tests/test_batch_norm.py` compares it with `nn.BatchNorm2d` and with
    numerical gradients.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        channels, columns = len(weight), x.shape[1]
        # With running statistics, which are thrown away, those of bfloat16 are float32.
        unused = weight.new_zeros(2, columns)
        statistics = torch.batch_norm_update_stats(x, unused[0], unused[1], 0.0)
        means, variances = (v.view(-1, channels) for v in statistics)
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance)
        return _affine(x, mean, variance + eps, weight, bias), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, variance = ctx.saved_tensors
        dy, channels, rows = dy.contiguous(), len(weight), x.numel() // len(weight)
        k = x.shape[1] // channels
        repeated = (weight.repeat(k), mean.repeat(k), variance.repeat(k))
        _, *sums = torch.ops.aten.native_batch_norm_backward(
            dy, x, *repeated, None, None, False, ctx.eps, (False, True, True)
        )
        d_weight, d_bias = (v.view(k, channels).sum(0) for v in sums)
        scale = weight * (variance + ctx.eps).rsqrt()
        dx = _affine(x, mean, variance + ctx.eps, -scale * d_weight / rows, -scale * d_bias / rows)
        zero = torch.zeros_like(mean)
        dx += _affine(dy, zero, torch.ones_like(mean), scale, zero)
        return dx, d_weight, d_bias, None


def _affine(x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return `(x - mean) / sqrt(variance) * weight + bias` of each channel, in one pass."""
    k = x.shape[1] // len(mean)
    mean, variance, weight, bias = (v.repeat(k) for v in (mean, variance, weight, bias))
    return nn.functional.batch_norm(x, mean, variance, weight, bias, eps=0.0)
