"""Bundles for tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from resp_tune.config import TrialConfig
from resp_tune.training.model_bundle import Bundle, save_bundle


def save_networks(
    folder: Path,
    config: TrialConfig,
    classes: Sequence[str],
    networks: Sequence[nn.Module],
    details: Mapping[str, Any],
) -> str:
    """Write a bundle of one trial into `folder` and return the SHA-256 of its weights."""
    return save_bundle(folder, Bundle(config, tuple(classes), tuple(networks), {}), details)
