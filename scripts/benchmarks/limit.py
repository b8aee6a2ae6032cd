"""Row D, the limit: a training's network and steps on batches that are in memory already."""

from __future__ import annotations

import torch
from torch import nn

from resp_tune.features.augment import augment_params
from resp_tune.features.batches import make_batch
from resp_tune.training.loop import EVALUATION_BATCH, Training, autocast, batch_bounds

Batches = list[tuple[torch.Tensor, torch.Tensor]]


class Limit:
    """The batches of an epoch of `training`, on its device: `steps`, each a list of micro-batches,
    and `held_out`, those of validation.
    """

    def __init__(self, training: Training) -> None:
        self.run, self.config = training.folds[0], training.config
        micro = self.config.micro_batch
        self.steps = [self._batches(0, a, b, micro or b - a) for a, b in self.run.batches]
        held_out = len(self.run.labels[1])
        self.held_out = self._batches(1, 0, held_out, EVALUATION_BATCH)

    def _batches(self, side: int, first: int, last: int, size: int) -> Batches:
        clips, labels, device = self.run.clips[side], self.run.labels[side], self.run.device
        every = torch.arange(len(labels))
        count = clips.count.cpu()
        draws = augment_params(every, count, self.config, torch.Generator().manual_seed(0))
        draws, labels = draws.to(device), labels.to(device)
        bounds = [(first + a, first + b) for a, b in batch_bounds(last - first, size)]
        return [(make_batch(clips, draws[a:b], self.config), labels[a:b]) for a, b in bounds]

    def epoch(self) -> None:
        """Train and validate once over; returns when the device is done."""
        self.train()
        run = self.run
        run.network.eval()
        with torch.inference_mode(), autocast(self.config, run.device):
            for x, _ in self.held_out:
                run.network(x).float().softmax(1)
        wait(run.device)

    def train(self) -> None:
        """Every step once; may return before the device is done."""
        run = self.run
        run.network.train()
        for step in self.steps:
            run.optimizer.zero_grad(set_to_none=True)
            items = sum(len(labels) for _, labels in step)
            for x, labels in step:
                with autocast(self.config, run.device):
                    logits = run.network(x)
                loss = nn.functional.cross_entropy(logits.float(), labels, reduction="sum") / items
                loss.backward()  # type: ignore[no-untyped-call]  # torch's own
            run.optimizer.step()


def wait(device: torch.device) -> None:
    """Return when `device` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
