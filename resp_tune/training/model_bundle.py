"""Save and load a trained model as a folder: `weights.safetensors`, `config.json`, any encoder."""

from __future__ import annotations

import hashlib
import json
import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import nn

from resp_tune.common.choices import LARGEST_ENSEMBLE
from resp_tune.common.paths import write_atomically
from resp_tune.config import AnyFrontEnd, EncoderFrontEnd, TrialConfig
from resp_tune.encoders.encoder_file import Encoder
from resp_tune.errors import UserError
from resp_tune.features.batches import ClipIndex, cut_clips, eval_params
from resp_tune.features.encoder_frames import EncoderFrames, encode_waveform
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

FORMAT, ENSEMBLE_FORMAT = 1, 2  # of one trial, of several
WEIGHTS, MEMBER_WEIGHTS = "weights.safetensors", "member{}.safetensors"
# In the details: what is added to the log-probability of a class before the largest one is taken.
OPERATING_POINT = "operating_point"
LARGEST = 1000.0  # offset: far more than the logarithm of the smallest probability

LoadClips = Callable[[TrialConfig], ClipIndex | PooledClips]


@dataclass(frozen=True)
class Member:
    """Networks of one trial: of one config, one for each seed and inner fold."""

    config: TrialConfig
    networks: tuple[nn.Module, ...]

    def predict_each(self, clips: ClipIndex | PooledClips) -> npt.NDArray[np.float32]:
        """Return each network's own class probabilities, `[networks, clips, classes]`."""
        if isinstance(clips, PooledClips):
            return np.stack([predict_head(n, clips) for n in self.networks])
        draws, prepared = eval_params(clips.count, self.config), clips.with_level(self.config)
        return np.stack([predict(n, prepared, draws, self.config) for n in self.networks])


def waveform_of(config: TrialConfig) -> tuple[str, bool | int, str]:
    """Return what decides which waveform is predicted: the same for all members of a bundle."""
    return config.encoder, config.has_encoder or config.sample_rate, config.resampling


@dataclass(frozen=True)
class Bundle:
    """The networks of a trial, and those of further trials if the model is an ensemble.

    `config` and `networks` are of the best trial, `others` are the further members. A prediction is
    the mean over members, at the operating point in `details`, if there is one. With an
    `encoder` the networks of configs with one are heads, and their `encoder` is the path of the
    bundle's copy. All members predict the same waveform.
    """

    config: TrialConfig
    classes: tuple[str, ...]
    networks: tuple[nn.Module, ...]
    details: dict[str, Any]
    encoder: Encoder | None = None
    others: tuple[Member, ...] = ()

    @property
    def members(self) -> tuple[Member, ...]:
        """Return the networks of each trial, the best trial first."""
        return (Member(self.config, self.networks), *self.others)

    @property
    def front_ends(self) -> tuple[AnyFrontEnd, ...]:
        """Return the front ends of all members, each once."""
        return tuple(dict.fromkeys(f for m in self.members for f in m.config.front_ends))

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
        start, end = torch.tensor(spans, dtype=torch.float64).clamp(max=1e9).T
        clips = torch.zeros(len(spans), dtype=torch.int64), start, end
        with torch.inference_mode():
            frames = self._encode(waveform)
            return self.predict_clips(lambda config: self._clips(config, waveform, frames, clips))

    def _encode(self, waveform: torch.Tensor) -> dict[EncoderFrontEnd, EncoderFrames]:
        """Return the encoder's frames of each front end of the members."""
        frames = dict[EncoderFrontEnd, EncoderFrames]()
        if self.encoder is None:
            return frames
        passes: dict[float | None, list[EncoderFrontEnd]] = {}
        for front_end in self.front_ends:
            if isinstance(front_end, EncoderFrontEnd):
                passes.setdefault(front_end.f_max, []).append(front_end)
        for together in passes.values():  # one pass has one `f_max`
            each = encode_waveform(together, self.encoder, lambda rate, resampling: waveform)
            frames |= zip(together, each, strict=True)
        return frames

    def _clips(
        self,
        config: TrialConfig,
        waveform: torch.Tensor,
        encoded: Mapping[EncoderFrontEnd, EncoderFrames],
        clips: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    ) -> ClipIndex | PooledClips:
        """Return the clips of a waveform as networks of `config` take them."""
        first, start, end = clips
        if config.has_encoder:
            end = end.clamp(max=waveform.numel() / self.sample_rate)
            frames = [encoded[f] for f in config.front_ends if isinstance(f, EncoderFrontEnd)]
            pooled = [pool_frames(f, config.encoder_pool, first, start, end) for f in frames]
            return PooledClips(torch.cat(pooled, dim=1), "")
        front_end = config.front_end
        log_mel = join_frames(log_mels(waveform, [front_end]), silence(front_end))
        return cut_clips(log_mel, front_end, first, start, end)

    def predict_clips(self, load: LoadClips) -> npt.NDArray[np.float32]:
        """Return class probabilities `[clips, classes]`, without augmentation.

        `load` returns the clips as networks of a config take them.
        """
        return self.combine(self.predict_each(load))

    def predict_each(self, load: LoadClips) -> npt.NDArray[np.float32]:
        """Return each network's own class probabilities, `[networks, clips, classes]`."""
        return np.concatenate([m.predict_each(load(m.config)) for m in self.members])

    def combine(self, each: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the model's probabilities `[clips, classes]` from `[networks, clips, classes]`.

        `each` is of all networks, or of some, which then weigh the same. A member weighs as much as
        another that has more networks.
        """
        point = self.details.get(OPERATING_POINT) or {}
        counts = [len(m.networks) for m in self.members]
        mean = each.mean(axis=0)
        if len(each) == sum(counts) and len(set(counts)) > 1:
            parts = np.split(each, np.cumsum(counts)[:-1])
            mean = np.mean([part.mean(axis=0) for part in parts], axis=0)
        return move(mean, log_offsets(point, self.classes))


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


def save_bundle(folder: Path, bundle: Bundle, details: Mapping[str, Any]) -> str:
    """Write a bundle into `folder` and return the SHA-256 of its weights.

    `details` (task, provenance …) go into `config.json` beside what loading needs, in place of
    those of `bundle`. A config with an encoder needs the one that its heads were trained on.
    """
    names = [WEIGHTS, *(MEMBER_WEIGHTS.format(n + 1) for n in range(len(bundle.others)))]
    weights = {
        name: save(_tensors(m.networks)) for name, m in zip(names, bundle.members, strict=True)
    }
    entries = [
        {**_describe_member(m, bundle.encoder), "weights_sha256": _sha256(weights[name])}
        for name, m in zip(names, bundle.members, strict=True)
    ]
    content = {"format": FORMAT, "classes": list(bundle.classes), **entries[0]}
    if bundle.others:
        content |= {"format": ENSEMBLE_FORMAT, "weights_sha256": _digest(entries)}
        content["members"] = entries
    content |= details
    folder.mkdir(parents=True, exist_ok=True)
    content |= save_encoder(folder, bundle.encoder)
    for stale in set(folder.glob(MEMBER_WEIGHTS.format("*"))) - {folder / name for name in names}:
        stale.unlink()
    for name, data in weights.items():
        write_atomically(folder / name, data)
    write_atomically(folder / "config.json", (json.dumps(content, indent=1) + "\n").encode())
    return str(content["weights_sha256"])


def _tensors(networks: Sequence[nn.Module]) -> dict[str, torch.Tensor]:
    return {
        f"fold{n}.{name}": value.detach().cpu().contiguous()
        for n, network in enumerate(networks)
        for name, value in network.state_dict().items()
    }


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _digest(entries: Sequence[Mapping[str, Any]]) -> str:
    """Return one hash of the weights of all members of an ensemble."""
    return _sha256("".join(str(entry["weights_sha256"]) for entry in entries).encode())


def _describe_member(member: Member, encoder: Encoder | None) -> dict[str, Any]:
    config = member.config
    return {
        "front_end": _describe_front_end(config, encoder),
        "trial_config": config.as_dict(),
        **describe_network(config),
        "folds": len(member.networks),
    }


def _describe_front_end(config: TrialConfig, encoder: Encoder | None) -> dict[str, Any]:
    if encoder is None or not config.has_encoder:
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
    try:
        for key in ("provenance", OPERATING_POINT):
            if not isinstance(content.get(key, {}), dict):
                raise TypeError(f"{key} is not a mapping")
        classes, entries = _classes(content["classes"]), _entries(content)
        log_offsets(content.get(OPERATING_POINT, {}), classes)
        configs = [TrialConfig.from_saved(entry["trial_config"]) for entry in entries]
        origins = [saved_origin(entry) for entry in entries]
    except (UserError, KeyError, TypeError, ValueError) as error:
        raise _invalid(folder, error) from error
    weights = [_read_weights(folder, n, entry) for n, entry in enumerate(entries)]
    if content["format"] == ENSEMBLE_FORMAT and content.get("weights_sha256") != _digest(entries):
        raise UserError(
            f"'{folder / 'config.json'}' is damaged: weights_sha256 is not that of its members"
        )
    for config, origin in zip(configs, origins, strict=True):
        check_installed(folder, config, origin, len(classes))
    check_runtime(folder, content)
    try:
        encoder, layers = None, [c.encoder_layer for c in configs if c.has_encoder]
        if layers:
            encoder = load_encoder(folder, content, layers, copy=temporary)
            given = {"encoder": encoder.given}
            configs = [c.replace(given) if c.has_encoder else c for c in configs]
        members = [
            Member(config, _load_networks(load(data), entry["folds"], config, len(classes)))
            for config, data, entry in zip(configs, weights, entries, strict=True)
        ]
        if encoder is not None:
            _check_heads(members, encoder)
        if len({waveform_of(config) for config in configs}) > 1:
            raise ValueError("its members are for different waveforms")
    except (UserError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise _invalid(folder, error) from error
    best, *others = members
    return Bundle(best.config, classes, best.networks, content, encoder, tuple(others))


def _check_heads(members: Sequence[Member], encoder: Encoder) -> None:
    """Raise `ValueError` if a head is not for the features that the encoder gives."""
    for member in members:
        features = len(member.networks[0].state_dict().get("mean", ()))
        if member.config.has_encoder and features != count_features(member.config, encoder):
            raise ValueError("its weights do not fit its encoder")


def _entries(content: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return the part of each member in a bundle's `config.json`, the best trial's first."""
    entries = content["members"] if content["format"] == ENSEMBLE_FORMAT else [content]
    if not isinstance(entries, list) or not 0 < len(entries) <= LARGEST_ENSEMBLE:
        raise TypeError(f"members is not a list of 1 to {LARGEST_ENSEMBLE}")
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("trial_config"), dict):
            raise TypeError("trial_config is not a mapping")
    return entries


def _read_weights(folder: Path, number: int, entry: Mapping[str, Any]) -> bytes:
    """Return the weights of member `number`; raises `UserError` if missing or damaged."""
    path = folder / (MEMBER_WEIGHTS.format(number) if number else WEIGHTS)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror}") from error
    if _sha256(data) != entry.get("weights_sha256"):
        raise UserError(f"'{path}' is damaged: its hash is not the one in config.json")
    return data


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
    if not isinstance(content, dict) or content.get("format") not in (FORMAT, ENSEMBLE_FORMAT):
        raise UserError(
            f"'{path}' is not a bundle of format {FORMAT} or {ENSEMBLE_FORMAT}, which this version "
            "reads"
        )
    return content
