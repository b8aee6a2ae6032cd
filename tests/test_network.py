"""The network against the notebook's, written out plainly."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from support.toy import toy_config, toy_data
from torch import nn

from resp_tune.training.loop import Training
from resp_tune.training.networks.network import SoundNet, two_by_two


def plain(classes: int, width: int, dropout: float, channels: int) -> nn.Module:
    """The layers of the article, one after the other, on `[items, channels, …]`."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sizes = [channels, width, 2 * width, 4 * width, 8 * width]
            kernels = [5, 3, 3, 3]
            blocks: list[nn.Module] = []
            for i in range(4):
                conv = nn.Conv2d(
                    sizes[i], sizes[i + 1], kernels[i], stride=2, padding=kernels[i] // 2
                )
                blocks += [conv, nn.ReLU(), nn.BatchNorm2d(sizes[i + 1])]
            self.blocks = nn.Sequential(*blocks)
            head: list[nn.Module] = []
            for n_in, n_out in (
                (16 * width, 32 * width),
                (32 * width, 16 * width),
                (16 * width, classes),
            ):
                head += [nn.BatchNorm1d(n_in), nn.Dropout(dropout), nn.Linear(n_in, n_out)]
            self.head = nn.Sequential(*head)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.blocks(x)
            largest = nn.functional.adaptive_max_pool2d(x, 1).flatten(1)
            average = nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)
            logits: torch.Tensor = self.head(torch.cat([largest, average], dim=1))
            return logits

    return Plain()


def same_weights(ours: nn.Module, theirs: nn.Module) -> None:
    """By order: both list their layers from the input to the output."""
    values = list(ours.state_dict().values())
    theirs.load_state_dict(dict(zip(theirs.state_dict(), values, strict=True)))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("channels", [1, 2])
def test_equals_the_plain_network(channels: int, training: bool) -> None:
    """Outputs, gradients and running statistics; two channels see two copies of the clip."""
    torch.manual_seed(0)
    # In float64: batch norms over six items blow up float32's rounding by the thread.
    ours = SoundNet(8, width=8, dropout=0.0, channels=channels).train(training).double()
    theirs = plain(8, 8, 0.0, channels).train(training).double()
    same_weights(ours, theirs)
    x = torch.randn(6, 1, 60, 40, dtype=torch.float64) * 20 - 50
    labels = torch.arange(6)
    outputs = []
    for network, given in ((ours, x), (theirs, x.repeat(1, channels, 1, 1))):
        outputs.append(network(given))
        loss = nn.functional.cross_entropy(outputs[-1], labels)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own
    torch.testing.assert_close(*outputs, atol=1e-9, rtol=1e-9)
    compared = 0
    for mine, its in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert mine.grad is not None
        assert its.grad is not None
        assert mine.shape == its.shape
        torch.testing.assert_close(mine.grad, its.grad, atol=1e-9, rtol=1e-7)
        compared += 1
    assert compared == 4 * 4 + 3 * 4  # weight and bias of each convolution, norm and linear layer
    for running, other in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(running, other, atol=1e-4, rtol=1e-4)


def test_two_channels_train_as_two() -> None:
    """Summing the kernels must not tie them: each starts, and could be decayed, on its own."""
    network = SoundNet(3, width=4, dropout=0.0, channels=2)
    first = network.blocks[0][0].weight  # type: ignore[index]  # a Sequential of Sequentials
    assert first.shape == (4, 2, 5, 5)
    assert not torch.equal(first[:, 0], first[:, 1])


@pytest.mark.parametrize(("channels", "count"), [(2, 92_928), (1, 92_728)])
def test_number_of_weights(channels: int, count: int) -> None:
    """By hand, two channels: convolutions 408 + 1168 + 4640 + 18 496, norms 240, head 67 976."""
    network = SoundNet(8, width=8, dropout=0.25, channels=channels)
    assert sum(p.numel() for p in network.parameters()) == count


def test_weights_start_xavier_uniform() -> None:
    torch.manual_seed(0)
    network = SoundNet(8, width=16, dropout=0.25)
    checked = 0
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            fan_in, fan_out = nn.init._calculate_fan_in_and_fan_out(module.weight)
            bound = (6 / (fan_in + fan_out)) ** 0.5
            assert 0.9 * bound < module.weight.abs().max() <= bound
            assert module.bias is not None
            assert module.bias.abs().max() <= fan_in**-0.5  # torch's own
            assert module.bias.any()
            checked += 1
    assert checked == 7


def test_dropout_stands_before_each_linear_layer() -> None:
    network = SoundNet(8, width=4, dropout=0.3)
    layers = [module for module in network.head.modules() if not list(module.children())]
    assert [type(layer) for layer in layers] == [nn.BatchNorm1d, nn.Dropout, nn.Linear] * 3
    assert {m.p for m in network.modules() if isinstance(m, nn.Dropout)} == {0.3}


@pytest.mark.parametrize("shape", [(2, 1, 1, 1), (2, 1, 313, 48), (2, 1, 7, 80)])
def test_any_size_of_clip(shape: tuple[int, ...]) -> None:
    assert SoundNet(6, width=4, dropout=0.1).eval()(torch.randn(shape)).shape == (2, 6)


def test_bands_are_standardised_by_the_training_side() -> None:
    config = toy_config(normalise="band", top_db=30.0)
    data = toy_data(config)
    rows = []
    for first, count in zip(data.train.clips.first, data.train.clips.count, strict=True):
        values = data.train.clips.frames.values[first : first + count].float().numpy()
        rows.append(np.maximum(values, values.max() - 30))
    every = np.concatenate(rows)
    network = Training(config, [data]).networks()[0]
    assert network.bands is not None
    np.testing.assert_allclose(network.bands.mean, every.mean(0), rtol=1e-4)
    np.testing.assert_allclose(network.bands.sd, every.std(0), rtol=1e-3)
    plain = copy.deepcopy(network)
    plain.bands = None
    x = torch.randn(3, 1, 16, 16) * 10 - 40
    standard = (x - network.bands.mean) / network.bands.sd
    assert torch.equal(network(x), plain(standard))


@pytest.mark.parametrize(("depth", "widest"), [(2, 8), (3, 16), (4, 32), (6, 32)])
def test_depth_adds_blocks_of_at_most_eight_widths(depth: int, widest: int) -> None:
    network = SoundNet(5, width=4, dropout=0.1, depth=depth)
    convs = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert [c.out_channels for c in convs] == [min(4 * 2**i, 32) for i in range(depth)]
    assert max(c.out_channels for c in convs) == widest
    assert network.eval()(torch.randn(2, 1, 100, 40)).shape == (2, 5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [(6, 8), (7, 8), (6, 5), (1, 1), (9, 3)])
def test_blocks_are_pixel_unshuffled(size: tuple[int, int], dtype: torch.dtype) -> None:
    height, width = size
    x = torch.randn(3, height + 2, width + 1).to(dtype)[:, 2:, 1:]  # not contiguous
    even = nn.functional.pad(x, (0, width % 2, 0, height % 2))
    blocks = two_by_two(x)
    assert blocks.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(blocks, nn.functional.pixel_unshuffle(even[:, None], 2))
