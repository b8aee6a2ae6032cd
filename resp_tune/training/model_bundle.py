"""Save and load a trained model as a folder: `weights.safetensors`, `config.json`, any encoder."""

from __future__ import annotations

import hashlib
import json
import math
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
from resp_tune.config import EncoderFrontEnd, TrialConfig
from resp_tune.encoders.encoder_file import Encoder
from resp_tune.errors import UserError
from resp_tune.features.batches import ClipIndex, cut_clips, eval_params
from resp_tune.features.encoder_frames import encode_waveform
from resp_tune.features.logmel import join_frames, log_mels, silence
from resp_tune.features.pooled_clips import PooledClips, pool_frames
from resp_tune.training.bundled_encoder import (
    check_runtime,
    count_features,
    load_encoder,
    save_encoder,
)
from resp_tune.training.bundled_network import check_installed, describe_network, saved_origin
from resp_tune.training.heads.head_fold import predict_head
from resp_tune.training.heads.head_network import empty_head
from resp_tune.training.loop import predict
from resp_tune.training.metrics import Floats
from resp_tune.training.networks.network_registry import BUILT_IN, build_network

FORMAT = 1
WEIGHTS = "weights.safetensors"
# In the details: what is added to the log-probability of a class before the largest one is taken.
OPERATING_POINT = "operating_point"
LARGEST = 1000.0  # offset: far more than the logarithm of the smallest probability


@dataclass(frozen=True)
class Bundle:
    """Networks of one config, one for each seed and inner fold.

    A prediction is the mean of theirs, at the operating point in `details`, if there is one.
    With an `encoder` the networks are heads, and `config.encoder` is the path of the bundle's copy.
    """

    config: TrialConfig
    classes: tuple[str, ...]
    networks: tuple[nn.Module, ...]
    details: dict[str, Any]
    encoder: Encoder | None = None

    @property
    def sample_rate(self) -> int:
        """Return the rate, in Hz, of the waveforms that are predicted."""
        return self.config.sample_rate if self.encoder is None else self.encoder.settings.rate

    def predict_waveform(self, waveform: torch.Tensor) -> npt.NDArray[np.float32]:
        """Return class probabilities `[classes]` of float32 `[samples]` at `sample_rate`."""
        whole: npt.NDArray[np.float32] = self.predict_spans(waveform, [(0.0, math.inf)])[0]
        return whole

    def predict_spans(
        self, waveform: torch.Tensor, spans: Sequence[tuple[float, float]]
    ) -> npt.NDArray[np.float32]:
        """Return class probabilities `[spans, classes]` of parts of `waveform`, in seconds."""
        first = torch.zeros(len(spans), dtype=torch.int64)
        start, end = torch.tensor(spans, dtype=torch.float64).clamp(max=1e9).T
        with torch.inference_mode():
            if self.encoder is not None:
                end = end.clamp(max=waveform.numel() / self.sample_rate)
                return self.predict_clips(self._features(waveform, first, start, end))
            front_end = self.config.front_end
            frames = join_frames(log_mels(waveform, [front_end]), silence(front_end))
            return self.predict_clips(cut_clips(frames, front_end, first, start, end))

    def _features(self, waveform: torch.Tensor, *clips: torch.Tensor) -> PooledClips:
        if self.encoder is None:
            raise ValueError("a bundle without an encoder has no features")
        front_ends = [f for f in self.config.front_ends if isinstance(f, EncoderFrontEnd)]
        each = encode_waveform(front_ends, self.encoder, lambda rate, resampling: waveform)
        pooled = [pool_frames(frames, self.config.encoder_pool, *clips) for frames in each]
        return PooledClips(torch.cat(pooled, dim=1), "")

    def predict_clips(self, clips: ClipIndex | PooledClips) -> npt.NDArray[np.float32]:
        """Return class probabilities `[clips, classes]`, without augmentation."""
        return self.combine(self.predict_each(clips))

    def predict_each(self, clips: ClipIndex | PooledClips) -> npt.NDArray[np.float32]:
        """Return each network's own class probabilities, `[networks, clips, classes]`."""
        if isinstance(clips, PooledClips):
            return np.stack([predict_head(n, clips) for n in self.networks])
        draws, prepared = eval_params(clips.count, self.config), clips.with_level(self.config)
        return np.stack([predict(n, prepared, draws, self.config) for n in self.networks])

    def combine(self, each: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the model's probabilities `[clips, classes]` from `[networks, clips, classes]`."""
        point = self.details.get(OPERATING_POINT) or {}
        return move(each.mean(axis=0), log_offsets(point, self.classes))


def log_offsets(point: Mapping[str, float], classes: Sequence[str]) -> Floats:
    """Return the offsets `[classes]` of an operating point, which names classes.

    Raises `ValueError` for a class that is not there, and for an offset that is not a number from
    -1000 to 1000.
    """
    if unknown := sorted(set(point) - set(classes)):
        raise ValueError(f"operating_point names {unknown[0]!r}, which is not a class")
    for name, value in point.items():
        if not isinstance(value, float | int) or not -LARGEST <= value <= LARGEST:
            raise ValueError(f"operating_point: {reprlib.repr(value)} of {name!r} is no offset")
    return np.array([float(point.get(name, 0.0)) for name in classes])


def move(probabilities: npt.NDArray[np.float32], offsets: Floats) -> npt.NDArray[np.float32]:
    """Return `probabilities` `[…, classes]` at the operating point of `offsets` `[classes]`."""
    if not offsets.any():
        return probabilities
    # The largest factor is 1, so that none overflows.
    moved = probabilities.astype(np.float64) * np.exp(offsets - offsets.max())
    total = moved.sum(-1, keepdims=True)
    shares = np.divide(moved, total, out=probabilities.astype(np.float64), where=total > 0)
    result: npt.NDArray[np.float32] = shares.astype(np.float32)
    return result


def save_bundle(
    folder: Path,
    config: TrialConfig,
    classes: Sequence[str],
    networks: Sequence[nn.Module],
    details: Mapping[str, Any],
    encoder: Encoder | None = None,
) -> str:
    """Write a bundle into `folder` and return the SHA-256 of its weights.

    `details` (task, provenance …) go into `config.json` beside what loading needs. A config with an
    encoder needs the one that its heads were trained on.
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
        "front_end": _describe_front_end(config, encoder),
        "trial_config": config.as_dict(),
        **describe_network(config),
        "folds": len(networks),
        "weights_sha256": digest,
        **details,
    }
    folder.mkdir(parents=True, exist_ok=True)
    content |= save_encoder(folder, encoder)
    write_atomically(folder / WEIGHTS, weights)
    write_atomically(folder / "config.json", (json.dumps(content, indent=1) + "\n").encode())
    return digest


def _describe_front_end(config: TrialConfig, encoder: Encoder | None) -> dict[str, Any]:
    if encoder is None:
        return asdict(config.front_end)
    names = ("encoder_layer", "encoder_speed", "encoder_pool", "f_max", "resampling")
    fields = {name: getattr(config, name) for name in names}
    return {"sample_rate": encoder.settings.rate, "encoder": encoder.sha256, **fields}


def load_bundle(folder: str | Path, *, temporary: bool = False) -> Bundle:
    """Load the bundle in `folder`; raises `UserError` if it is missing, damaged or not one.

    The encoder of a `temporary` folder is copied to the cache folder.
    """
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
        config, encoder = TrialConfig.from_saved(content["trial_config"]), None
        classes = _classes(content["classes"])
        log_offsets(content.get(OPERATING_POINT, {}), classes)
        origin = saved_origin(content)
    except (UserError, KeyError, TypeError, ValueError) as error:
        raise _invalid(folder, error) from error
    check_installed(folder, config, origin, len(classes))
    check_runtime(folder, content)
    try:
        if config.has_encoder:
            encoder = load_encoder(folder, content, config, copy=temporary)
            config = config.replace({"encoder": encoder.given})
        networks = _load_networks(load(weights), content["folds"], config, len(classes))
        features = len(networks[0].state_dict().get("mean", ()))
        if encoder is not None and features != count_features(config, encoder):
            raise ValueError("its weights do not fit its encoder")
    except (UserError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise _invalid(folder, error) from error
    return Bundle(config, classes, networks, content, encoder)


def _invalid(folder: Path, error: Exception) -> UserError:
    return UserError(f"'{folder}' is not a valid bundle ({error}): save it again")


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
    known = config.has_encoder or config.network in BUILT_IN
    for n in range(len(saved)):
        prefix = f"fold{n}."
        own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        # Takes no memory, whatever the sizes in the config. Packages may not support it.
        with torch.device("meta" if known else "cpu"):
            untrained = _untrained(config, own, classes).state_dict()
            shapes = {name: value.shape for name, value in untrained.items()}
        if {name: value.shape for name, value in own.items()} != shapes:
            raise ValueError("its weights do not fit its trial config and classes")
        network = _untrained(config, own, classes)
        network.load_state_dict(own)
        networks.append(network.eval())
    return tuple(networks)


def _untrained(config: TrialConfig, saved: Mapping[str, torch.Tensor], classes: int) -> nn.Module:
    """Return the network of a config for the weights `saved`, which tell the sizes of a head."""
    if config.has_encoder:
        return empty_head(config, saved, classes)
    return build_network(config, classes)


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
