"""The training of one fold, whatever is trained: a network on frames, or a head on features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from resp_tune.common.fault_points import fault_point
from resp_tune.config import TrialConfig
from resp_tune.features.batches import ClipIndex
from resp_tune.features.pooled_clips import PooledClips
from resp_tune.training.balance import draw_clips, make_loss, sampling_weights
from resp_tune.training.metrics import all_metrics
from resp_tune.training.optimizer import make_optimizer
from resp_tune.training.regularization import ModelAverage, blend, blended_loss, draw_weights
from resp_tune.training.seeds import mix_seed


@dataclass(frozen=True)
class SplitTensors:
    """Clips of one split: their frames or features, and their labels as int64 `[clips]`.

    The labels are on the CPU. `groups` holds the number of each clip's session and patient, by
    level.
    """

    clips: ClipIndex | PooledClips
    labels: torch.Tensor
    groups: Mapping[str, npt.NDArray[np.int64]] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingData:
    """Training and validation split of one network, over the same frames."""

    train: SplitTensors
    validation: SplitTensors
    classes: tuple[str, ...]


class FoldTraining(ABC):
    """One network, trained on the training split of a fold and scored on its validation split.

    `lr` is the learning rate of the last step taken, 0 before the first and without any.
    """

    def __init__(
        self, config: TrialConfig, data: TrainingData, device: torch.device, fold: int
    ) -> None:
        self.config, self.device, self.fold = config, device, fold
        self.labels = (data.train.labels, data.validation.labels)
        self.groups = data.validation.groups
        self.classes = data.classes
        self.lr = 0.0

    @property
    @abstractmethod
    def evaluated(self) -> nn.Module:
        """Return the network that is scored and saved."""

    def trained_network(self) -> nn.Module:
        """Return the network for a bundle, ready to predict."""
        return self.evaluated.eval()

    @abstractmethod
    def try_one_batch(self) -> None:
        """Train and validate one batch as a check; do not train on afterwards."""

    @abstractmethod
    def train(self, epoch: int) -> float:
        """Train for an epoch and return the mean loss over its items."""

    @abstractmethod
    def predict_validation(self, epoch: int) -> npt.NDArray[np.float32]:
        """Return class probabilities `[clips, classes]` of the validation split."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return what is needed to resume after an epoch; `network` is the evaluated one."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Resume from `state`, which must come from the same config and fold."""

    def validate(self, epoch: int) -> dict[str, float]:
        """Return metrics of the validation split, none if a probability is not finite."""
        probabilities = self.predict_validation(epoch)
        if not np.isfinite(probabilities).all():
            return {}
        return all_metrics(self.labels[1].numpy(), probabilities, self.classes, self.groups)


class Draws(Protocol):
    """What an epoch shows: item `i` is clip `clip[i]`, perhaps augmented."""

    @property
    def clip(self) -> torch.Tensor:
        """Return the index of each item's clip, int64 `[items]`."""

    def __len__(self) -> int: ...

    def __getitem__(self, items: slice) -> Self: ...


D = TypeVar("D", bound=Draws)


class GradientFold(FoldTraining, Generic[D]):
    """A fold whose network is trained by AdamW under a OneCycle schedule, batch by batch.

    `fused`: the kind of AdamW, None for torch's choice; the kinds differ in the last bits.
    """

    fused: bool | None = None

    def __init__(
        self, config: TrialConfig, data: TrainingData, device: torch.device, fold: int
    ) -> None:
        super().__init__(config, data, device, fold)
        self.device_labels = data.train.labels.to(device)
        torch.manual_seed(mix_seed(config.seed, fold, 0))
        self.network = self.make_network(data)
        self.average = ModelAverage(self.network, config.ema) if config.ema else None
        self.rates = sampling_weights(
            config.balance, *self.labels, data.train.groups.get("patient")
        )
        self.loss = make_loss(config, self.device_labels, len(data.classes))
        self.batches = batch_bounds(len(data.train.labels), config.batch_size)
        steps = len(self.batches) * config.epochs
        self.optimizer, self.schedule = make_optimizer(
            self.parameter_groups(), config, steps, fused=self.fused
        )

    @abstractmethod
    def make_network(self, data: TrainingData) -> nn.Module:
        """Return the untrained network, on the compute device; its weights are drawn by torch."""

    @abstractmethod
    def draw(self, clip: torch.Tensor, generator: torch.Generator) -> D:
        """Draw what an epoch that shows the clips `clip` `[items]` shows of them."""

    @abstractmethod
    def logits(self, draws: D, mix: torch.Tensor | None) -> torch.Tensor:
        """Return logits `[items, classes]` of items; `mix` blends each with the one before it."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the optimiser's parameter groups; a group without `lr` has that of the config."""
        return [{"params": list(self.network.parameters())}]

    @property
    def evaluated(self) -> nn.Module:
        """Return the network that is scored and saved: the average, if there is one."""
        return self.network if self.average is None else self.average.network

    def train(self, epoch: int) -> float:
        """Train for an epoch and return the mean loss over its items."""
        seed = mix_seed(self.config.seed, self.fold, epoch)
        torch.manual_seed(seed)  # dropout
        generator = torch.Generator().manual_seed(seed)
        clip = draw_clips(len(self.labels[0]), self.rates, generator)
        draws = self.draw(clip, generator)
        mix = draw_weights(len(clip), self.config.mixup, seed, self.device)
        self.network.train()
        total = torch.zeros((), device=self.device)
        for start, stop in self.batches:
            # Summed on the compute device: fetching each loss would wait for every step.
            total += self._step(draws[start:stop], None if mix is None else mix[start:stop])
            self.lr = float(self.optimizer.param_groups[0]["lr"])
            self.schedule.step()
            if self.average is not None:
                self.average.update(self.schedule.last_epoch)
        return float(total) / self.batches[-1][1]

    def _step(self, draws: D, mix: torch.Tensor | None) -> torch.Tensor:
        """Take an optimiser step on the gradients of all micro-batches; return the summed loss."""
        self.optimizer.zero_grad(set_to_none=True)
        size = self.config.micro_batch or len(draws)
        total = torch.zeros((), device=self.device)
        for start, stop in batch_bounds(len(draws), size):
            fault_point("training-step")
            loss = self._losses(draws[start:stop], None if mix is None else mix[start:stop]).sum()
            (loss / len(draws)).backward()  # type: ignore[no-untyped-call]  # torch's own
            total += loss.detach()
        self.optimizer.step()
        return total

    def _losses(self, draws: D, mix: torch.Tensor | None) -> torch.Tensor:
        """Return the loss of each item, `[items]`, which `mix` blends with its neighbour."""
        labels = self.device_labels[draws.clip]
        logits = self.logits(draws, mix)
        own = self.loss(logits, labels)
        return own if mix is None else blended_loss(own, self.loss(logits, labels.roll(1)), mix)

    def state(self) -> dict[str, Any]:
        """Return the state; `trained` is there only if the evaluated `network` is an average."""
        average = {} if self.average is None else {"trained": self.network.state_dict()}
        return {
            "network": self.evaluated.state_dict(),
            **average,
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Resume from `state`, which must come from the same config and fold."""
        self.evaluated.load_state_dict(state["network"])
        if self.average is not None:
            self.network.load_state_dict(state["trained"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])


def mixed(x: torch.Tensor, mix: torch.Tensor | None) -> torch.Tensor:
    """Return the items `x` `[items, …]`, blended by `mix` `[items]` if there is one."""
    return x if mix is None else blend(x, mix)


def batch_bounds(items: int, size: int) -> list[tuple[int, int]]:
    """Return start and stop of each batch of an epoch, of which no item is left out.

    A rest of a quarter batch or less joins the batch before it: batch statistics of a few items are
    noisy, and a step on them undoes many good ones.
    """
    starts = list(range(0, items, size))
    if len(starts) > 1 and items - starts[-1] <= max(1, size // 4):
        starts.pop()
    return list(zip(starts, [*starts[1:], items], strict=True))
