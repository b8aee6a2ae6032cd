"""Several trials of one shape as one network: whether a fused step is worth its while."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.func import functional_call, stack_module_state

from benchmarks.limit import Batches, Limit
from resp_tune.training.network import SoundNet


class Fused:
    """The training steps of `limits`, networks of one shape and as many items, taken all at once.

    Parameters and buffers are stacked to `[networks, …]`. Each network keeps its own batch
    statistics, dropout and gradient, and AdamW goes element by element, so each learns what it
    would learn alone. All have the first one's config, in float32: torch has no batch statistics of
    another type for stacked networks.
    """

    def __init__(self, limits: Sequence[Limit]) -> None:
        runs = [limit.run for limit in limits]
        if limits[0].config.precision != "float32":
            raise ValueError("networks are fused in float32 only")
        self.parameters, self.buffers = stack_module_state([run.network for run in runs])
        self.network = _without_values(runs[0].network)
        given = runs[0].optimizer.param_groups[0]
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(),
            lr=given["lr"],
            betas=given["betas"],
            weight_decay=given["weight_decay"],
        )
        whole = zip(*(limit.steps for limit in limits), strict=True)
        self.steps = [_side_by_side(step) for step in whole]

    def train(self) -> None:
        """Every step once; may return before the device is done."""
        for step in self.steps:
            self.optimizer.zero_grad(set_to_none=True)
            items = sum(labels.shape[1] for _, labels in step)
            for x, labels in step:
                logits = self._forward(x).flatten(0, 1)
                loss = nn.functional.cross_entropy(logits, labels.flatten(), reduction="sum")
                (loss / items).backward()  # type: ignore[no-untyped-call]  # torch's own
            self.optimizer.step()

    def _forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits `[networks, items, classes]` of `x` `[networks, items, …]`."""

        def one(
            parameters: Mapping[str, torch.Tensor],
            buffers: Mapping[str, torch.Tensor],
            x: torch.Tensor,
        ) -> torch.Tensor:
            logits: torch.Tensor = functional_call(self.network, (parameters, buffers), (x,))
            return logits

        together = torch.vmap(one, randomness="different")
        logits: torch.Tensor = together(self.parameters, self.buffers, x)
        return logits


def _without_values(network: SoundNet) -> SoundNet:
    """The network's computation alone, for `functional_call`, with torch's batch normalisation:
    ours cannot be stacked.
    """
    plain = copy.deepcopy(network).to("meta").train()
    for block in plain.blocks:
        if isinstance(block, nn.Sequential):
            block[2] = nn.BatchNorm2d(block[2].num_features, device="meta")
    return plain


def _side_by_side(steps: Sequence[Batches]) -> Batches:
    """The same micro-batches of all networks, `[networks, items, …]`."""
    return [
        (torch.stack([x for x, _ in batch]), torch.stack([labels for _, labels in batch]))
        for batch in zip(*steps, strict=True)
    ]
