"""Batch normalisation of few channels, on a CPU as fast as of many."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

MOMENTUM = 0.1  # torch's
COLUMNS = 128  # of a row; it fills the vector registers for every dtype


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
