"""Train a head on the pooled features of one fold: a linear one at once, an MLP epoch by epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from resp_tune.config import TrialConfig
from resp_tune.features.pooled_clips import PooledClips
from resp_tune.training.balance import patient_weights
from resp_tune.training.fold_training import (
    FoldTraining,
    GradientFold,
    SplitTensors,
    TrainingData,
    mixed,
)
from resp_tune.training.heads.head_network import HeadNetwork
from resp_tune.training.heads.logistic_regression import coordinates, fit_logistic_regression
from resp_tune.training.heads.reduction import TrainingMatrix, training_matrix
from resp_tune.training.memory import trim_heap
from resp_tune.training.regularization import draw_weights

# The inputs of a hidden layer for which `lr` is meant. Adam's step moves every weight by about
# `lr`, so the sum over n inputs by n times that: lr / n keeps it alike whatever n is (Yang et al.,
# Tensor Programs V, arXiv:2203.03466), and one range of `lr` serves all layers, speeds and `pca`.
BASE_INPUTS = 64
LARGE = 1 << 27  # bytes of a fold's features
COMPONENTS = "components"  # a buffer of `HeadNetwork`


def head_folds(
    config: TrialConfig, folds: Sequence[TrainingData], device: torch.device
) -> list[FoldTraining]:
    """Return the training of a head on each fold, of the kind that `config.head` names."""
    kind: type[FoldTraining] = MlpFold if config.head == "mlp" else LinearFold
    return [kind(config, data, device, n) for n, data in enumerate(folds)]


class LinearFold(FoldTraining):
    """A balanced logistic regression, fitted in the first epoch; further epochs change nothing.

    So the steps of its trial are those of every other one, and rungs, folds in sequence and
    replicates need to know nothing of it.
    """

    def __init__(
        self, config: TrialConfig, data: TrainingData, device: torch.device, fold: int
    ) -> None:
        super().__init__(config, data, device, fold)
        self.train_features, self.features = pooled(data.train), pooled(data.validation)
        self.weight = patient_weights(data.train.labels, data.train.groups.get("patient"))
        self.network = HeadNetwork(self.train_features.values.shape[1], len(data.classes))
        self.loss: float | None = None  # once it is fitted
        self.scored: dict[str, float] | None = None

    @property
    def evaluated(self) -> nn.Module:
        """Return the network that is scored and saved."""
        return self.network

    def try_one_batch(self) -> None:
        """Fit and predict: it is one batch."""
        self.train(1)
        self.predict_validation(1)

    def train(self, epoch: int) -> float:
        """Fit the head unless that is done; return the weighted mean loss over the clips."""
        if self.loss is None:
            matrix = training_matrix(self.train_features)
            at = coordinates(matrix, self.train_features, self.weight, self.config.pca)
            labels, classes = self.labels[0], len(self.classes)
            fit = fit_logistic_regression(at, labels, self.weight, classes, self.config.head_c)
            self.network.fit(matrix.mean, matrix.scale)
            with torch.no_grad():
                weights = matrix.directions(self.train_features, at.combine(fit.weights))
                self.network.output.weight.copy_(weights.T)
                self.network.output.bias.copy_(fit.bias)
            self.loss = fit.loss
            if self.train_features.values.nbytes > LARGE:
                trim_heap()  # of gigabytes of temporary values
        return self.loss

    def validate(self, epoch: int) -> dict[str, float]:
        """Return metrics of the validation split, computed once."""
        if self.scored is None:
            self.scored = super().validate(epoch)
        return self.scored

    def predict_validation(self, epoch: int) -> npt.NDArray[np.float32]:
        """Return class probabilities `[clips, classes]` of the validation split."""
        return predict_head(self.network, self.features)

    def state(self) -> dict[str, Any]:
        """Return the fitted network and its loss, NaN before it is fitted."""
        loss = math.nan if self.loss is None else self.loss
        return {"network": self.network.state_dict(), "loss": loss}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Resume from `state`, which must come from the same config and fold."""
        self.network.load_state_dict(state["network"])
        loss = float(state["loss"])
        self.loss, self.scored = (None if math.isnan(loss) else loss), None


@dataclass(frozen=True)
class ShownClips:
    """The clips that an epoch of an MLP shows, `clip` int64 `[items]`, and their noise.

    `noise`: float32 `[items, inputs]`, None without.
    """

    clip: torch.Tensor
    noise: torch.Tensor | None

    def __len__(self) -> int:
        return len(self.clip)

    def __getitem__(self, items: slice) -> ShownClips:
        return ShownClips(self.clip[items], None if self.noise is None else self.noise[items])


class MlpFold(GradientFold[ShownClips]):
    """A hidden layer and a linear one, trained on standardised features in float32.

    The features are standardised, and projected if `pca` is given, by what the first epoch fits to
    the training clips. Components keep their relative sizes, with a mean variance of 1.
    """

    network: HeadNetwork
    fused = True  # one pass over a hidden layer of up to a million weights, which is most of a step

    def make_network(self, data: TrainingData) -> HeadNetwork:
        """Return the untrained network, of which the first epoch fits the buffers."""
        self.train_features, self.features = pooled(data.train), pooled(data.validation)
        config, (clips, features) = self.config, self.train_features.values.shape
        components = min(config.pca, clips - 1, features) if config.pca else None
        network = HeadNetwork(
            features,
            len(data.classes),
            components=components,
            hidden=config.hidden,
            dropout=config.dropout,
        )
        self.inputs: torch.Tensor | None = None  # of the training clips, `[clips, inputs]`
        self.component_weights: torch.Tensor | None = None  # what `_directions` takes, once fitted
        return network.to(self.device)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the output layer, and the hidden one at a rate for its number of inputs.

        A step of AdamW decays weights by `lr · weight_decay`, the same for both.
        """
        hidden, output = self.network.hidden_layer, self.network.output
        share = min(1.0, BASE_INPUTS / hidden.in_features)
        slower = {"lr": self.config.lr * share, "weight_decay": self.config.weight_decay / share}
        return [
            {"params": list(output.parameters())},
            {"params": list(hidden.parameters()), **slower},
        ]

    def train(self, epoch: int) -> float:
        """Train for an epoch and return the mean loss over its items."""
        self._reduce(fit=epoch == 1)
        return super().train(epoch)

    def _reduce(self, *, fit: bool) -> None:
        """Reduce the training clips, with `fit` by what is fitted to them."""
        if fit:
            matrix, own = training_matrix(self.train_features), self.network.components
            components = None
            if own is not None:
                self.component_weights = _component_weights(
                    matrix, self.train_features, own.shape[1]
                )
                components = self._directions(self.component_weights)
            self.network.fit(matrix.mean, matrix.scale, components)
            self.evaluated.load_state_dict(dict(self.network.named_buffers()), strict=False)
        if fit or self.inputs is None:
            self.inputs = self.network.reduce(self.train_features.values.to(self.device))

    def _directions(self, weights: torch.Tensor) -> torch.Tensor:
        """Return components, float32 `[features, count]`, from their `weights` of the clips."""
        matrix = training_matrix(self.train_features)
        return matrix.directions(self.train_features, weights)

    def state(self) -> dict[str, Any]:
        """Return the state; its components are combinations of the training clips.

        There are mostly far fewer clips than features, so that a checkpoint with the components
        themselves would be up to 20 times as large.
        """
        state, own = super().state(), self.network.components
        if own is None or (self.component_weights is None and own.any()):
            return state  # those of an older checkpoint
        for name in state.keys() & {"network", "trained"}:
            state[name] = {k: v for k, v in state[name].items() if k != COMPONENTS}
        return {**state, "component_weights": self.component_weights}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Resume from `state`, which must come from the same config and fold."""
        weights, own = state.get("component_weights"), self.network.components
        if own is not None and COMPONENTS not in state["network"]:  # older checkpoints hold them
            components = torch.zeros_like(own) if weights is None else self._directions(weights)
            state = {
                name: {**value, COMPONENTS: components} if name in ("network", "trained") else value
                for name, value in state.items()
            }
        super().load_state(state)
        self.component_weights, self.inputs = weights, None

    def trained_network(self) -> nn.Module:
        """Return the network for a bundle, as small as it can be."""
        evaluated = self.evaluated
        return (evaluated.compact() if isinstance(evaluated, HeadNetwork) else evaluated).eval()

    @property
    def _inputs(self) -> torch.Tensor:
        if self.inputs is None:
            raise ValueError("the training clips are reduced when an epoch begins")
        return self.inputs

    def try_one_batch(self) -> None:
        """Take one step on a batch, and predict another."""
        self._reduce(fit=True)
        self.network.train()
        clip = torch.arange(self.batches[0][1])
        draws = self.draw(clip, torch.Generator().manual_seed(0))
        self._step(draws, draw_weights(len(clip), self.config.mixup, 0, self.device))
        self.predict_validation(1)

    def draw(self, clip: torch.Tensor, generator: torch.Generator) -> ShownClips:
        """Draw the noise of an epoch's items."""
        noise = None
        if self.config.feature_noise:
            shape = (len(clip), self._inputs.shape[1])
            noise = torch.randn(shape, generator=generator) * self.config.feature_noise
            noise = noise.to(self.device)
        return ShownClips(clip.to(self.device), noise)

    def logits(self, draws: ShownClips, mix: torch.Tensor | None) -> torch.Tensor:
        """Return logits `[items, classes]` of items; `mix` blends each with the one before it."""
        x = self._inputs[draws.clip]
        if draws.noise is not None:
            x = x + draws.noise
        return self.network.logits(mixed(x, mix))

    def predict_validation(self, epoch: int) -> npt.NDArray[np.float32]:
        """Return class probabilities `[clips, classes]` of the validation split."""
        return predict_head(self.evaluated, self.features)


def _component_weights(matrix: TrainingMatrix, features: PooledClips, count: int) -> torch.Tensor:
    """Return the weights of the clips from which `matrix.directions` makes principal components.

    Float32 `[clips, count]`. The components are scaled by one factor, by which their mean variance
    becomes 1. Where the clips span fewer dimensions, the rest is 0.
    """
    clips, weights = matrix.principal(features, count)
    variance = clips.square().sum() / (len(clips) * count)
    weights = weights * variance.clamp(min=1e-12).rsqrt()
    return nn.functional.pad(weights, (0, count - weights.shape[1])).float()


def pooled(split: SplitTensors) -> PooledClips:
    """Return the features of a split; raises `TypeError` for frames."""
    if not isinstance(split.clips, PooledClips):
        raise TypeError("a head needs pooled features, and these clips are frames")
    return split.clips


def predict_head(network: nn.Module, features: PooledClips) -> npt.NDArray[np.float32]:
    """Return class probabilities `[clips, classes]` by a head."""
    network.eval()
    device = next(network.parameters()).device
    with torch.inference_mode():
        logits = network(features.values.to(device))
        probabilities: npt.NDArray[np.float32] = logits.float().softmax(1).cpu().numpy()
    return probabilities
