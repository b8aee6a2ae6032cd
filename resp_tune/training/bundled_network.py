"""Record in a bundle where its network comes from, and check that it is installed."""

from __future__ import annotations

import logging
import re
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resp_tune.common.text import one_line
from resp_tune.config import TrialConfig
from resp_tune.errors import UserError
from resp_tune.training.networks.network_registry import (
    BUILT_IN,
    NetworkOrigin,
    check_network,
    network_origin,
)

log = logging.getLogger(__name__)


def describe_network(config: TrialConfig) -> dict[str, dict[str, str]]:
    """Return what `config.json` records of a trial's network; nothing if it trains a head."""
    return {} if config.has_encoder else {"network": network_origin(config.network).as_dict()}


def saved_origin(content: Mapping[str, Any]) -> NetworkOrigin | None:
    """Return where a bundle's network came from; bundles of 0.1.0 do not say."""
    saved = content.get("network")
    if saved is None:
        return None
    if not isinstance(saved, dict) or not all(isinstance(v, str) for v in saved.values()):
        raise TypeError("network is not a mapping of texts")
    return NetworkOrigin(saved["name"], saved["distribution"], saved["version"])


def check_installed(
    folder: Path, config: TrialConfig, origin: NetworkOrigin | None, classes: int
) -> None:
    """Raise `UserError` if the bundle's network is not installed or does not work here."""
    if config.has_encoder or config.network in BUILT_IN:
        return
    package = "the package that offers it"
    if origin is not None and re.fullmatch(r"[\w.-]{1,100}", origin.distribution, re.ASCII):
        version = one_line(origin.version)[:100]
        package = f"the package {origin.distribution} (it was saved with version {version})"
    try:
        installed = network_origin(config.network)
    except UserError as error:
        raise UserError(
            f"'{folder}' needs the network {reprlib.repr(config.network)}, which is not installed: "
            f"install {package}, if you trust it"
        ) from error
    if origin is not None and (installed.distribution, installed.version) != (
        origin.distribution, origin.version,
    ):  # fmt: skip
        log.warning(f"'{folder}' was saved with {one_line(str(origin))}; installed: {installed}")
    check_network(config, classes)
