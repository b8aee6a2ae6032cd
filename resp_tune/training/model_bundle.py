"""Save and load a trained model as a folder: `weights.safetensors` and `config.json`."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from resp_tune.common.paths import write_atomically
from resp_tune.common.text import one_line
from resp_tune.config import TrialConfig
from resp_tune.errors import UserError
from resp_tune.features.augment import eval_params
from resp_tune.features.batches import ClipIndex, cut_clips
from resp_tune.features.logmel import join_frames, log_mels, silence
from resp_tune.training.loop import predict
from resp_tune.training.network_registry import (
    BUILT_IN,
    NetworkOrigin,
    build_network,
    check_network,
    network_origin,
)
from resp_tune.training.operating_point import log_offsets, move

log = logging.getLogger(__name__)

FORMAT = 1
WEIGHTS = "weights.safetensors"
OPERATING_POINT = "operating_point"  # in the details: log offsets by class


@dataclass(frozen=True)
class Bundle:
    """Networks of one config, one for each seed and inner fold.

    A prediction is the mean of theirs, at the operating point in `details`, if there is one.
    """

    config: TrialConfig
    classes: tuple[str, ...]
    networks: tuple[nn.Module, ...]
    details: dict[str, Any]

    def predict_waveform(self, waveform: torch.Tensor) -> npt.NDArray[np.float32]:
        """Return class probabilities `[classes]` of float32 `[samples]` at `config.sample_rate`."""
        whole: npt.NDArray[np.float32] = self.predict_spans(waveform, [(0.0, math.inf)])[0]
        return whole

    def predict_spans(
        self, waveform: torch.Tensor, spans: Sequence[tuple[float, float]]
    ) -> npt.NDArray[np.float32]:
        """Return class probabilities `[spans, classes]` of parts of `waveform`, in seconds."""
        front_end = self.config.front_end
        with torch.inference_mode():
            mels = log_mels(waveform, [front_end])
            frames = join_frames(mels, silence(front_end))
            start, end = torch.tensor(spans, dtype=torch.float64).clamp(max=1e9).T
            first = torch.zeros(len(spans), dtype=torch.int64)
            return self.predict_clips(cut_clips(frames, front_end, first, start, end))

    def predict_clips(self, clips: ClipIndex) -> npt.NDArray[np.float32]:
        """Return class probabilities `[clips, classes]`, without augmentation."""
        return self.combine(self.predict_each(clips))

    def predict_each(self, clips: ClipIndex) -> npt.NDArray[np.float32]:
        """Return each network's own class probabilities, `[networks, clips, classes]`."""
        draws, prepared = eval_params(clips.count, self.config), clips.with_level(self.config)
        return np.stack([predict(n, prepared, draws, self.config) for n in self.networks])

    def combine(self, each: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the model's probabilities `[clips, classes]` from `[networks, clips, classes]`."""
        point = self.details.get(OPERATING_POINT) or {}
        return move(each.mean(axis=0), log_offsets(point, self.classes))


def save_bundle(
    folder: Path,
    config: TrialConfig,
    classes: Sequence[str],
    networks: Sequence[nn.Module],
    details: Mapping[str, Any],
) -> str:
    """Write a bundle into `folder` and return the SHA-256 of its weights.

    `details` (task, provenance …) go into `config.json` beside what loading needs.
    """
    tensors = {
        f"fold{n}.{name}": value.detach().cpu().contiguous()
        for n, network in enumerate(networks)
        for name, value in network.state_dict().items()
    }
    weights = save(tensors)
    digest = hashlib.sha256(weights).hexdigest()
    content = {
        "format": FORMAT,
        "classes": list(classes),
        "front_end": asdict(config.front_end),
        "trial_config": config.as_dict(),
        "network": network_origin(config.network).as_dict(),
        "folds": len(networks),
        "weights_sha256": digest,
        **details,
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / WEIGHTS, weights)
    write_atomically(folder / "config.json", (json.dumps(content, indent=1) + "\n").encode())
    return digest


def load_bundle(folder: str | Path) -> Bundle:
    """Load the bundle in `folder`; raises `UserError` if it is missing, damaged or not one."""
    folder = Path(folder)
    content = _read_config(folder)
    path = folder / WEIGHTS
    try:
        weights = path.read_bytes()
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror}") from error
    if hashlib.sha256(weights).hexdigest() != content.get("weights_sha256"):
        raise UserError(f"'{path}' is damaged: its hash is not the one in config.json")
    try:
        for key in ("trial_config", "provenance", OPERATING_POINT):
            if not isinstance(content.get(key, {}), dict):
                raise TypeError(f"{key} is not a mapping")
        config = TrialConfig.from_saved(content["trial_config"])
        classes, origin = _classes(content["classes"]), _saved_origin(content)
        log_offsets(content.get(OPERATING_POINT, {}), classes)
    except (UserError, KeyError, TypeError, ValueError) as error:
        raise _invalid(folder, error) from error
    _check_installed(folder, config, origin, len(classes))
    try:
        networks = _load_networks(load(weights), content["folds"], config, len(classes))
    except (UserError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise _invalid(folder, error) from error
    return Bundle(config, classes, networks, content)


def _invalid(folder: Path, error: Exception) -> UserError:
    return UserError(f"'{folder}' is not a valid bundle ({error}): save it again")


def _saved_origin(content: Mapping[str, Any]) -> NetworkOrigin | None:
    """Return where a bundle's network came from; bundles of 0.1.0 do not say."""
    saved = content.get("network")
    if saved is None:
        return None
    if not isinstance(saved, dict) or not all(isinstance(v, str) for v in saved.values()):
        raise TypeError("network is not a mapping of texts")
    return NetworkOrigin(saved["name"], saved["distribution"], saved["version"])


def _check_installed(
    folder: Path, config: TrialConfig, origin: NetworkOrigin | None, classes: int
) -> None:
    """Raise `UserError` if the bundle's network is not installed or does not work here."""
    if config.network in BUILT_IN:
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


def _classes(names: Any) -> tuple[str, ...]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TypeError("classes is not a list of names")
    if not len(set(names)) == len(names) > 1:
        raise ValueError(f"{len(names)} classes, or some of one name")
    return tuple(names)


def _load_networks(
    tensors: Mapping[str, torch.Tensor], folds: Any, config: TrialConfig, classes: int
) -> tuple[nn.Module, ...]:
    """Return the network of each fold; raises `ValueError` for other folds or shapes."""
    saved = {name.split(".")[0] for name in tensors}
    if not saved or saved != {f"fold{n}" for n in range(len(saved))} or folds != len(saved):
        raise ValueError(f"its weights are not those of {reprlib.repr(folds)} folds")
    networks = []
    # Takes no memory, whatever the sizes in the config. Packages may not support it.
    with torch.device("meta" if config.network in BUILT_IN else "cpu"):
        shapes = {k: v.shape for k, v in build_network(config, classes).state_dict().items()}
    for n in range(len(saved)):
        prefix = f"fold{n}."
        own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        if {name: value.shape for name, value in own.items()} != shapes:
            raise ValueError("its weights do not fit its trial config and classes")
        network = build_network(config, classes)
        network.load_state_dict(own)
        networks.append(network.eval())
    return tuple(networks)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(
            f"'{folder}' is not a bundle: no readable config.json in it; give the winner/ folder "
            "of a search or models:/NAME@ALIAS"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"'{path}' is damaged: it is not JSON") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"'{path}' is not a bundle of format {FORMAT}, which this version reads")
    return content
