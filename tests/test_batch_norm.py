"""The batch normalisation of few channels beside torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from resp_tune.training.networks.network import BatchNorm

SHAPES = [(4, 8, 6, 32), (3, 12, 7, 5), (2, 16, 9, 3), (5, 64, 4, 2), (1, 8, 1, 4), (2, 1, 8, 8)]


def pair(channels: int, dtype: torch.dtype) -> tuple[BatchNorm, nn.BatchNorm2d]:
    """Ours and torch's with the same weights, none of them 0 or 1, after another batch's update."""
    generator = torch.Generator().manual_seed(1)
    ours, theirs = BatchNorm(channels).to(dtype), nn.BatchNorm2d(channels).to(dtype)
    for values in (theirs.weight.data, theirs.bias.data, theirs.running_mean, theirs.running_var):
        assert values is not None
        values.copy_(0.5 + torch.rand(channels, generator=generator))
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def activations(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """What a ReLU leaves, channels-last, each channel at a height of its own."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x = x * 3 + torch.arange(shape[1]).view(-1, 1, 1)
    return x.relu().to(dtype).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_torchs(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Outputs, all gradients and the running statistics; weights stay float32 in bfloat16."""
    kept = torch.float32 if dtype == torch.bfloat16 else dtype
    ours, theirs = pair(shape[1], kept)
    x = activations(shape, dtype)
    upstream = torch.randn(shape, generator=torch.Generator().manual_seed(3)).to(dtype)
    found = []
    for norm in (ours, theirs):
        given = x.clone(memory_format=torch.preserve_format).requires_grad_()
        y = norm(given)
        (y * upstream).sum().backward()
        assert given.grad is not None
        assert norm.weight.grad is not None
        assert norm.bias.grad is not None
        found.append((y, given.grad, norm.weight.grad, norm.bias.grad))
    mine, torchs = found
    assert mine[0].dtype == torchs[0].dtype
    assert mine[0].is_contiguous(memory_format=torch.channels_last)
    rounding = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 4e-2}[dtype]
    for a, b in zip(mine, torchs, strict=True):
        torch.testing.assert_close(
            a, b, rtol=rounding, atol=rounding * float(b.detach().abs().max())
        )
    exact = min(rounding, 1e-5)  # whatever the activations are, statistics are not rounded to it
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=exact, atol=exact)
    ours.eval()
    theirs.eval()
    torch.testing.assert_close(ours(x), theirs(x), rtol=rounding, atol=rounding)


def test_gradients_are_those_of_finite_differences() -> None:
    norm, _ = pair(4, torch.float64)
    x = activations((2, 4, 4, 4), torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(norm, (x,))


def test_other_layouts_are_left_to_torch() -> None:
    ours, theirs = pair(8, torch.float32)
    x = torch.randn(2, 8, 4, 4)
    assert torch.equal(ours(x), theirs(x))
    assert ours.state_dict().keys() == theirs.state_dict().keys()


def test_a_single_value_a_channel_is_refused_as_by_torch() -> None:
    ours, theirs = pair(8, torch.float32)
    x = activations((1, 8, 1, 1), torch.float32)
    for norm in (ours, theirs):
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            norm(x)


def test_a_channel_that_is_always_zero() -> None:
    ours, _ = pair(8, torch.float32)
    x = activations((2, 8, 4, 4), torch.float32)
    x[:, 3] = 0
    y = ours(x.requires_grad_())
    y.sum().backward()
    assert torch.equal(y[:, 3], ours.bias[3].expand(2, 4, 4))
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())
