"""The network of a head: standardise features, project them, then one or two linear layers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from resp_tune.config import TrialConfig


class HeadNetwork(nn.Module):
    """Compute logits `[items, classes]` of pooled features `[items, features]`.

    Buffers standardise the features and, with `components`, project them. Then comes one linear
    layer, or with `hidden` units Linear → ReLU → Dropout → Linear. All weights but those of a
    hidden layer start at 0: buffers and a linear head are fitted, not trained from there.
    """

    mean: torch.Tensor
    scale: torch.Tensor
    components: torch.Tensor | None

    def __init__(
        self,
        features: int,
        classes: int,
        *,
        components: int | None = None,
        hidden: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.zeros(features))
        empty = None if components is None else torch.zeros(features, components)
        self.register_buffer("components", empty)
        inputs = features if components is None else components
        self.hidden = None if hidden is None else nn.Linear(inputs, hidden)
        self.dropout = nn.Dropout(dropout)
        self.output = nn.Linear(inputs if hidden is None else hidden, classes)
        for parameter in self.output.parameters():
            nn.init.zeros_(parameter)

    @property
    def hidden_layer(self) -> nn.Linear:
        """Return the hidden layer; raises `ValueError` for a linear head."""
        if self.hidden is None:
            raise ValueError("a linear head has no hidden layer")
        return self.hidden

    def fit(
        self, mean: torch.Tensor, scale: torch.Tensor, components: torch.Tensor | None = None
    ) -> None:
        """Set the buffers, float32 `[features]` and `[features, components]`."""
        self.mean.copy_(mean)
        self.scale.copy_(scale)
        if self.components is not None and components is not None:
            self.components.copy_(components)

    def reduce(self, features: torch.Tensor) -> torch.Tensor:
        """Return what the first layer gets, `[items, inputs]`."""
        x = (features - self.mean) * self.scale
        return x if self.components is None else x @ self.components

    def logits(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of reduced features."""
        if self.hidden is not None:
            x = self.dropout(self.hidden(x).relu())
        return self.output(x)  # type: ignore[no-any-return]  # torch types modules as Any

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logits of a batch."""
        return self.logits(self.reduce(features))

    def compact(self) -> HeadNetwork:
        """Return the same function with fewer weights, if projection and hidden layer can be one.

        Both are linear, and there are more features than anything else.
        """
        if self.components is None or self.hidden is None:
            return self
        if self.hidden.out_features >= self.hidden.in_features:
            return self
        merged = HeadNetwork(
            len(self.mean),
            self.output.out_features,
            hidden=self.hidden.out_features,
            dropout=self.dropout.p,
        ).to(self.mean.device)
        state = self.state_dict()
        state["hidden.weight"] = state["hidden.weight"] @ state.pop("components").T
        merged.load_state_dict(state)
        return merged


def empty_head(config: TrialConfig, saved: Mapping[str, torch.Tensor], classes: int) -> HeadNetwork:
    """Return the head of a config with the sizes that the weights `saved` have.

    The number of features depends on the encoder, that of components on the training clips. Raises
    `ValueError` if `saved` are not the weights of a head.
    """
    mean, components = saved.get("mean"), saved.get("components")
    if mean is None or mean.dim() != 1 or (components is not None and components.dim() != 2):
        raise ValueError("its weights are not those of a head")
    is_mlp = config.head == "mlp"
    return HeadNetwork(
        len(mean),
        classes,
        components=None if components is None else components.shape[1],
        hidden=config.hidden if is_mlp else None,
        dropout=config.dropout if is_mlp else 0.0,
    )
