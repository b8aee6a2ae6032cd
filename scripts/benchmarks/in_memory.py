"""Row D: the network and the steps of a training on batches that are already in memory."""

from __future__ import annotations

import torch
from torch import nn

from resp_tune.features.batches import augment_params, make_batch
from resp_tune.training.fold_training import batch_bounds
from resp_tune.training.loop import EVALUATION_BATCH, Training, autocast

MicroBatches = list[tuple[torch.Tensor, torch.Tensor]]  # inputs and labels


class InMemoryTraining:
    """An epoch of `training` with its batches made in advance, on its compute device.

    `steps`: the micro-batches of each training step. `validation`: the validation batches.
    """

    def __init__(self, training: Training) -> None:
        self.fold, self.config = training.folds[0], training.config
        micro = self.config.micro_batch
        self.steps = [self._batches(0, a, b, micro or b - a) for a, b in self.fold.batches]
        items = len(self.fold.labels[1])
        self.validation = self._batches(1, 0, items, EVALUATION_BATCH)

    def _batches(self, split: int, first: int, last: int, size: int) -> MicroBatches:
        clips, labels = self.fold.clips[split], self.fold.labels[split]
        items = torch.arange(len(labels))
        count = clips.count.cpu()
        draws = augment_params(items, count, self.config, torch.Generator().manual_seed(0))
        draws, labels = draws.to(self.fold.device), labels.to(self.fold.device)
        bounds = [(first + a, first + b) for a, b in batch_bounds(last - first, size)]
        return [(make_batch(clips, draws[a:b], self.config), labels[a:b]) for a, b in bounds]

    def epoch(self) -> None:
        """Train and validate once; return when the device is done."""
        self.train()
        fold = self.fold
        fold.network.eval()
        with torch.inference_mode(), autocast(self.config, fold.device):
            for x, _ in self.validation:
                fold.network(x).float().softmax(1)
        synchronize(fold.device)

    def train(self) -> None:
        """Take every step once; may return before the device is done."""
        fold = self.fold
        fold.network.train()
        for step in self.steps:
            fold.optimizer.zero_grad(set_to_none=True)
            items = sum(len(labels) for _, labels in step)
            for x, labels in step:
                with autocast(self.config, fold.device):
                    logits = fold.network(x)
                loss = nn.functional.cross_entropy(logits.float(), labels, reduction="sum") / items
                loss.backward()  # type: ignore[no-untyped-call]  # torch's own
            fold.optimizer.step()


def synchronize(device: torch.device) -> None:
    """Return when `device` is done."""
    if device.type == "cuda":
        torch.cuda.synchronize()
