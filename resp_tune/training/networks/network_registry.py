"""Find the network that a trial config names: built in, or of an installed package.

A package offers networks as entry points of the group `resp_tune.networks`, functions of the number
of classes and the `TrialConfig` that return an `nn.Module`. It gets log-mel clips
`[items, 1, frames, n_mels]` and returns logits `[items, classes]`.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from safetensors.torch import save
from torch import nn
from torch.nn.parameter import is_lazy

from resp_tune import __version__
from resp_tune.config import TrialConfig
from resp_tune.errors import UserError, nearest
from resp_tune.training.networks.network import SoundNet, Standardize
from resp_tune.training.networks.resnet import make_resnet

GROUP = "resp_tune.networks"
Factory = Callable[[int, TrialConfig], nn.Module]


@dataclass(frozen=True)
class NetworkOrigin:
    """The name of a network, and the distribution (the installed package) that it comes from."""

    name: str
    distribution: str
    version: str

    def as_dict(self) -> dict[str, str]:
        """Return what a bundle's `config.json` records."""
        return asdict(self)

    def __str__(self) -> str:
        return f"network '{self.name}' of {self.distribution} {self.version}"


def make_soundnet(classes: int, config: TrialConfig) -> SoundNet:
    """Return the notebook's network of a config."""
    return SoundNet(
        classes,
        width=config.width,
        dropout=config.dropout,
        channels=config.channels,
        depth=config.depth,
        bands=config.n_mels if config.normalise == "band" else None,
    )


BUILT_IN: Mapping[str, Factory] = {"notebook": make_soundnet, "resnet": make_resnet}


class StandardizedNetwork(nn.Module):
    """A network behind a standardisation of its bands, for `normalise: band`.

    `SoundNet` standardises its own bands, under names that older bundles have.
    """

    def __init__(self, network: nn.Module, bands: int) -> None:
        super().__init__()
        self.bands = Standardize(bands)
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of a batch."""
        return self.network(self.bands(x))  # type: ignore[no-any-return]  # torch types modules as Any


def network_origin(name: str) -> NetworkOrigin:
    """Return where the network `name` comes from; raise `UserError` for an unknown one."""
    if name in BUILT_IN:
        return NetworkOrigin(name, "resp-tune", __version__)
    return _origin(_entry_point(name))


def build_network(config: TrialConfig, classes: int) -> nn.Module:
    """Return the untrained network of a config.

    Raises `UserError` if its package cannot be used; errors of the package's function pass.
    """
    name = config.network
    if name in BUILT_IN:
        network = BUILT_IN[name](classes, config)
    else:
        found = _load(name)(classes, config)
        if not isinstance(found, nn.Module):
            kind = type(found).__name__
            raise _refusal(name, f"returns {kind}, which is no torch.nn.Module")
        network = found
    if config.normalise == "band" and not isinstance(network, SoundNet):
        return StandardizedNetwork(network, config.n_mels)
    return network


def set_band_statistics(network: nn.Module, mean: torch.Tensor, sd: torch.Tensor) -> None:
    """Set what a network of a config with `normalise: band` standardises by, float `[n_mels]`."""
    if not isinstance(network, SoundNet | StandardizedNetwork) or network.bands is None:
        raise TypeError("the network was built for another normalisation")
    network.bands.fit(mean, sd)


def check_network(config: TrialConfig, classes: int) -> None:
    """Build the network of a config and let it predict two clips; raise `UserError` if it cannot.

    What averaging and saving need is checked as well: all parameters must exist before the first
    batch, and the state must be tensors that do not share memory. Built-in networks need no check.
    """
    if config.network in BUILT_IN:
        return
    try:
        with torch.random.fork_rng(devices=[]):
            problem = _problem(build_network(config, classes), config, classes)
    except UserError:
        raise
    except Exception as error:  # whatever the package's code raises
        problem = f"fails ({_described(error)})"
    if problem:
        raise _refusal(config.network, problem)


def _problem(network: nn.Module, config: TrialConfig, classes: int) -> str | None:
    parameters = list(network.parameters())
    if not parameters:
        return "has no parameters to train"
    if any(is_lazy(parameter) for parameter in parameters):
        return "has lazy modules: give all sizes, so that its parameters exist from the start"
    try:
        save(network.state_dict())
    except Exception as error:  # safetensors raises several kinds
        return f"has a state that cannot be saved ({_described(error)})"
    network = network.to(memory_format=torch.channels_last).eval()
    with torch.inference_mode():
        logits = network(torch.randn(2, 1, config.clip_frames, config.n_mels))
    if not isinstance(logits, torch.Tensor):
        return f"returns {type(logits).__name__} for a batch, not a tensor of logits"
    if logits.shape != (2, classes) or not logits.is_floating_point():
        shape, kind = list(logits.shape), str(logits.dtype).removeprefix("torch.")
        return f"returns {kind} {shape} for 2 clips of {classes} classes, not float [2, {classes}]"
    return None


def _load(name: str) -> Factory:
    """Return the function of an installed package; raise `UserError` if it cannot be imported."""
    entry = _entry_point(name)
    try:
        factory: Any = entry.load()
    except Exception as error:  # whatever the package's code raises
        raise _refusal(
            name, f"cannot be imported from {entry.value} ({_described(error)})"
        ) from error
    if not callable(factory):
        raise _refusal(name, f"is {entry.value}, which is no function")
    return factory  # type: ignore[no-any-return]  # its result is checked


def _entry_point(name: str) -> importlib.metadata.EntryPoint:
    found = {entry.name: entry for entry in importlib.metadata.entry_points(group=GROUP)}
    if name not in found:
        raise UserError(f"unknown network {name!r}: {nearest(name, [*BUILT_IN, *found])}")
    named = importlib.metadata.entry_points(group=GROUP, name=name)
    if len(named) > 1:
        owners = " and ".join(sorted(_origin(entry).distribution for entry in named))
        raise UserError(f"network '{name}' is offered by {owners}: uninstall all but one")
    return found[name]


def _origin(entry: importlib.metadata.EntryPoint) -> NetworkOrigin:
    if entry.dist is None:  # not of an installed distribution
        return NetworkOrigin(entry.name, entry.module, "unknown")
    return NetworkOrigin(entry.name, entry.dist.name, entry.dist.version)


def _refusal(name: str, problem: str) -> UserError:
    return UserError(f"{network_origin(name)} {problem}: repair it, or name another network")


def _described(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
