"""Batch normalisation of few channels, on a CPU as fast as that of many."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn
from torch.autograd.function import once_differentiable

MOMENTUM = 0.1  # torch's
COLUMNS = 128  # of a row that fills the vector registers whatever the number's type


class BatchNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d`, which a CPU computes in a fraction of the time where channels are few.

    torch's kernels take a vector of channels at a time, and 8 channels are a fraction of one
    vector. So k neighbouring positions of channels-last activations stand side by side, as k times
    as many channels of a k-th of the positions, which moves no number. Their k groups of statistics
    become one: the mean of the means, and the mean of the variances plus the variance of the means.
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor
    num_batches_tracked: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__(channels, momentum=MOMENTUM)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """The normalised activations `[items, channels, height, width]`."""
        k = self._side_by_side(input)
        if k == 1:
            return super().forward(input)
        items, channels, height, width = input.shape
        x = input.permute(0, 2, 3, 1).reshape(-1, k * channels)
        y = self._normalised(x, k)
        return y.view(items, height, width, channels).permute(0, 3, 1, 2)

    def _side_by_side(self, x: torch.Tensor) -> int:
        """How many positions stand side by side: a power of 2 that divides their number."""
        plain = x.device.type != "cpu" or torch.compiler.is_compiling()
        if plain or not x.is_contiguous(memory_format=torch.channels_last):
            return 1
        fitting = max(1, COLUMNS // self.num_features)
        return math.gcd(x.numel() // self.num_features, 1 << (fitting.bit_length() - 1))

    def _normalised(self, x: torch.Tensor, k: int) -> torch.Tensor:
        if not self.training:
            mean, variance = self.running_mean.repeat(k), self.running_var.repeat(k)
            weight, bias = self.weight.repeat(k), self.bias.repeat(k)
            return nn.functional.batch_norm(x, mean, variance, weight, bias, eps=self.eps)
        found: tuple[torch.Tensor, ...] = _NormalizeFunction.apply(
            x, self.weight, self.bias, self.eps
        )
        y, mean, variance = found
        rows = x.numel() // self.num_features
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, MOMENTUM)
        self.running_var.lerp_(variance * (rows / (rows - 1)), MOMENTUM)
        return y


class _NormalizeFunction(torch.autograd.Function):
    """`x` `[rows, k * channels]` by the statistics of each channel, which come with it."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        channels, columns = len(weight), x.shape[1]
        # Two that are updated, and thrown away, so that the statistics of bfloat16 are float32.
        unused = weight.new_zeros(2, columns)
        found = torch.batch_norm_update_stats(x, unused[0], unused[1], 0.0)
        means, variances = (v.view(-1, channels) for v in found)
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)
        ctx.save_for_backward(x, weight, mean, variance)
        ctx.eps = eps
        ctx.mark_non_differentiable(mean, variance)
        return _affine(x, mean, variance + eps, weight, bias), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: torch.Tensor, *_: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, mean, variance = ctx.saved_tensors
        dy, channels, rows = dy.contiguous(), len(weight), x.numel() // len(weight)
        k = x.shape[1] // channels
        repeated = (weight.repeat(k), mean.repeat(k), variance.repeat(k))
        _, *sums = torch.ops.aten.native_batch_norm_backward(
            dy, x, *repeated, None, None, False, ctx.eps, (False, True, True)
        )
        d_weight, d_bias = (v.view(k, channels).sum(0) for v in sums)
        # dx = scale (dy - mean of dy - x' (mean of x' dy)), x' the normalised x
        scale = weight * (variance + ctx.eps).rsqrt()
        dx = _affine(x, mean, variance + ctx.eps, -scale * d_weight / rows, -scale * d_bias / rows)
        nothing = torch.zeros_like(mean)
        dx += _affine(dy, nothing, torch.ones_like(mean), scale, nothing)
        return dx, d_weight, d_bias, None


def _affine(
    x: torch.Tensor,
    mean: torch.Tensor,
    variance: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
) -> torch.Tensor:
    """`(x - mean) / sqrt(variance) * weight + bias` in one pass, of each channel's columns."""
    k = x.shape[1] // len(mean)
    mean, variance, weight, bias = (v.repeat(k) for v in (mean, variance, weight, bias))
    return nn.functional.batch_norm(x, mean, variance, weight, bias, eps=0.0)
