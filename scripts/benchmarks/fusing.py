"""Train several trials of one shape as one network, to see whether a fused step pays."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn
from torch.func import functional_call, stack_module_state

from benchmarks.in_memory import InMemoryTraining, MicroBatches
from resp_tune.training.networks.network import SoundNet


class FusedTraining:
    """The training steps of several networks of one shape, with equally many items, at once.

    Parameters and buffers are stacked to `[networks, …]`. Each network keeps its own batch
    statistics, dropout and gradient, and AdamW works element by element, so each learns what it
    would learn alone. All use the first training's config in float32, as torch has batch statistics
    of stacked networks in float32 only.
    """

    def __init__(self, trainings: Sequence[InMemoryTraining]) -> None:
        folds = [training.fold for training in trainings]
        if trainings[0].config.precision != "float32":
            raise ValueError("networks can only be fused in float32")
        self.parameters, self.buffers = stack_module_state([fold.network for fold in folds])
        self.network = _without_values(folds[0].network)
        group = folds[0].optimizer.param_groups[0]
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=group["lr"],
            betas=group["betas"],
            weight_decay=group["weight_decay"],
        )
        steps = zip(*(training.steps for training in trainings), strict=True)
        self.steps = [_stack(step) for step in steps]

    def train(self) -> None:
        """Take every step once; may return before the device is done."""
        for step in self.steps:
            self.optimizer.zero_grad(set_to_none=True)
            items = sum(labels.shape[1] for _, labels in step)
            for x, labels in step:
                logits = self._forward(x).flatten(0, 1)
                loss = nn.functional.cross_entropy(logits, labels.flatten(), reduction="sum")
                (loss / items).backward()  # type: ignore[no-untyped-call]  # torch's own
            self.optimizer.step()

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits `[networks, items, classes]` of `x` `[networks, items, …]`."""

        def forward_one(
            parameters: dict[str, torch.Tensor], buffers: dict[str, torch.Tensor], x: torch.Tensor
        ) -> torch.Tensor:
            logits: torch.Tensor = functional_call(self.network, (parameters, buffers), (x,))
            return logits

        forward_all = torch.vmap(forward_one, randomness="different")
        logits: torch.Tensor = forward_all(self.parameters, self.buffers, x)
        return logits


def _without_values(network: SoundNet) -> SoundNet:
    """Return a copy of `network` on the meta device, for `functional_call`.

    It has torch's batch normalisation: resp_tune's own cannot be stacked.
    """
    plain = copy.deepcopy(network).to("meta").train()
    for block in plain.blocks:
        if isinstance(block, nn.Sequential) and isinstance(block[2], nn.BatchNorm2d):
            block[2] = nn.BatchNorm2d(block[2].num_features, device="meta")
    return plain


def _stack(steps: Sequence[MicroBatches]) -> MicroBatches:
    """Return the same micro-batches of all networks as `[networks, items, …]`."""
    return [
        (torch.stack([x for x, _ in batch]), torch.stack([labels for _, labels in batch]))
        for batch in zip(*steps, strict=True)
    ]
