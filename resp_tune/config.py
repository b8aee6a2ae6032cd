"""The trial config: everything that one training run needs, in one frozen, validated value.

Only the standard library is imported, so that features and training also run on a host that has
torch and nothing else.
"""

from __future__ import annotations

import dataclasses
import functools
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

from resp_tune.errors import UserError, nearest

Balance = Literal[
    "none",
    "sampler",
    "sampler_all",
    "patient_sampler",
    "inverse",
    "sqrt_inverse",
    "effective_number",
    "focal",
    "logit_adjustment",
]
Compression = Literal["db", "pcen"]
Resampling = Literal["kaiser", "hann"]
EncoderSpeed = Literal["1", "2", "4", "1+2", "1+4", "2+4", "1+2+4"]
EncoderPool = Literal["mean+sd", "mean", "max"]
Precision = Literal["auto", "float32", "bfloat16"]


def bounded(default: Any, low: float, high: float, help: str, **flag: Any) -> Any:
    """Return a dataclass field whose value `check_fields` holds to `low` to `high`."""
    return setting(default, help, low=low, high=high, **flag)


def setting(default: Any, help: str, **flag: Any) -> Any:
    """Return a dataclass field with a help text; `cli.add_fields` says what `flag` may hold."""
    return field(default=default, metadata={"help": help, **flag})


@dataclass(frozen=True)
class FrontEnd:
    """The transform of a waveform to log-mel frames; it identifies a feature cache.

    Frames are `10·log10(max(mel power, 1e-10))` of a centred Hann STFT of `n_fft` samples, every
    `hop_length`, through `n_mels` HTK triangles from `f_min` to `f_max` Hz, without filter norm.
    With `compression: pcen` the power is divided by its own recent past instead of logged.
    `resampling`: the low-pass filter for recordings of another rate (`data/sounds/waveforms.py`).
    """

    sample_rate: int
    n_fft: int
    hop_length: int
    n_mels: int
    f_min: float
    f_max: float
    compression: Compression = "db"
    resampling: Resampling = "kaiser"

    def frames(self, samples: int) -> int:
        """Return the number of frames of a waveform of `samples` samples at `sample_rate`."""
        return 1 + samples // self.hop_length


@dataclass(frozen=True)
class EncoderFrontEnd:
    """What a frozen encoder makes of a recording played at one speed; identifies a feature cache.

    `encoder` is the path of its file, whose content is part of the cache's key in place of the
    path. `layer`: the tensor that is kept. At speed s a recording of r Hz is taken for one of s·r
    Hz, so that what is at f Hz reaches the encoder at s·f Hz. `f_max`: Hz in the recording, above
    which nothing reaches the encoder; None: all does.
    """

    encoder: str
    layer: str
    speed: int
    f_max: float | None
    resampling: Resampling = "kaiser"


AnyFrontEnd = FrontEnd | EncoderFrontEnd


@dataclass(frozen=True)
class TrialConfig:
    """Everything that one training run depends on besides its split.

    The defaults are the preset `baseline`. A value out of range raises `UserError`.
    """

    sample_rate: int = bounded(4000, 1000, 192_000, "Hz, recordings are resampled to it")
    clip_seconds: float = bounded(10.0, 0.1, 600.0, "s, length of what the network sees")
    n_fft: int = bounded(256, 16, 16_384, "samples of a window")
    hop_length: int = bounded(128, 1, 16_384, "samples between frames")
    n_mels: int = bounded(48, 1, 512, "mel bands")
    f_min: float = bounded(50.0, 0.0, 96_000.0, "Hz, lower edge of the lowest band")
    f_max: float | None = bounded(None, 1.0, 96_000.0, "Hz, upper edge; null: half the rate")
    resampling: Resampling = setting(
        "kaiser",
        "low-pass filter for recordings of another rate: kaiser: flat up to 0.95 of half the "
        "sample_rate; hann: torchaudio's default, 4 dB down there, with aliases",
    )
    top_db: float = bounded(80.0, 1.0, 200.0, "dB below a clip's loudest bin that are kept")
    channels: int = bounded(1, 1, 2, "2: the notebook's two identical channels")
    pad: Literal["silence", "repeat"] = setting("repeat", "what fills a clip that is too short")
    crop: Literal["start", "random"] = setting(
        "random",
        "what is kept of a recording that is too long: start: its beginning; random: anywhere in "
        "training, and in evaluation the mean over crops that cover it",
    )
    normalise: Literal["none", "clip", "recording", "band", "pcen"] = setting(
        "clip",
        "zero mean and unit sd over: clip: what the network sees; recording: all of the recording; "
        "band: each mel band of the training split. pcen: per-channel energy normalisation, no dB",
    )
    time_shift: float = bounded(0.4, 0.0, 1.0, "fraction of a clip, largest circular shift")
    max_mask_pct: float = bounded(0.1, 0.0, 1.0, "fraction of an axis, widest SpecAugment mask")
    n_freq_masks: int = bounded(1, 0, 10, "frequency masks an item")
    n_time_masks: int = bounded(2, 0, 10, "time masks an item")
    augment_validation: bool = setting(False, "the notebook's defect: augments validation as well")
    mixup: float = bounded(0.0, 0.0, 1.0, "α of Beta(α, α), by which pairs are mixed; 0: none")
    label_smoothing: float = bounded(0.0, 0.0, 0.5, "of a label, spread over all classes")
    network: str = setting(
        "notebook", "notebook, resnet, or a name that an installed package offers (docs/usage.md)"
    )
    width: int = bounded(16, 1, 256, "channels of the first block; the next three double them")
    depth: int = bounded(4, 2, 7, "convolution blocks; each halves frames and bands")
    dropout: float = bounded(0.25, 0.0, 0.95, "of each of the three last layers")
    lr: float = bounded(3e-3, 1e-7, 10.0, "peak of OneCycle")
    weight_decay: float = bounded(1e-2, 0.0, 10.0, "AdamW's")
    batch_size: int = bounded(32, 2, 65_536, "items an optimiser step")
    micro_batch: int | None = bounded(None, 2, 65_536, "items at once; null: the whole batch")
    epochs: int = bounded(20, 1, 100_000, "full length of the OneCycle schedule", metavar="N")
    ema: float = bounded(
        0.0, 0.0, 0.9999, "decay a step of the averaged weights that are evaluated; 0: none"
    )
    balance: Balance = setting(
        "sampler",
        "none: each item once; sampler: drawn with weight 1 / (class count in training); "
        "sampler_all: the notebook's, counts over training and validation; "
        "patient_sampler: each class alike, and each patient of a class; the others show each item "
        "once: inverse, sqrt_inverse, effective_number: loss weights; focal; logit_adjustment",
    )
    precision: Precision = setting(
        "auto", "of the network's arithmetic; auto: bfloat16 where the hardware has it"
    )
    encoder: str = setting(
        "none",
        "path of a frozen encoder (.tflite or .onnx), whose output a head is trained on; none: the "
        "network is trained on log-mel frames",
    )
    encoder_layer: str = setting(
        "last", "tensor of the encoder that is kept: last, its name, or its index"
    )
    encoder_speed: EncoderSpeed = setting(
        "1", "speeds at which the encoder hears a recording, joined by +; features of all are used"
    )
    encoder_pool: EncoderPool = setting(
        "mean+sd", "over the encoder's frames of a clip; its frequency axis is kept"
    )
    head: Literal["linear", "mlp"] = setting(
        "linear",
        "what is trained on the encoder's features: linear: balanced logistic regression; mlp: one "
        "hidden layer",
    )
    head_c: float = bounded(1e-3, 1e-7, 1e4, "inverse L2 penalty of the linear head")
    hidden: int = bounded(64, 1, 4096, "units of the mlp head's hidden layer")
    feature_noise: float = bounded(
        0.0, 0.0, 10.0, "sd of the noise added to standardised features while an mlp head trains"
    )
    pca: int = bounded(0, 0, 4096, "principal components of the features that a head gets; 0: all")
    seed: int = bounded(0, 0, 2**63 - 1, "seed of weights, random draws and dropout", metavar="N")

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.has_encoder:
            self._check_bands()
        if self.micro_batch is not None and self.micro_batch > self.batch_size:
            raise UserError(f"micro_batch {self.micro_batch} is above batch_size {self.batch_size}")
        for name in ("encoder", "encoder_layer"):
            if not getattr(self, name).strip():
                raise UserError(f"{name}: {getattr(self, name)!r} is empty: give {WANTED[name]}")

    def _check_bands(self) -> None:
        """Raise `UserError` for mel bands that the sample rate cannot have."""
        if self.f_max is not None and self.f_max > self.sample_rate / 2:
            raise UserError(
                f"f_max {self.f_max:g} Hz is above half the sample_rate {self.sample_rate}: "
                f"at most {self.sample_rate / 2:g}"
            )
        if self.f_min >= self.front_end.f_max:
            raise UserError(f"f_min {self.f_min:g} Hz is not below f_max {self.front_end.f_max:g}")

    @property
    def has_encoder(self) -> bool:
        """Return whether a head on a frozen encoder is trained, instead of a network."""
        return self.encoder != "none"

    @property
    def front_ends(self) -> tuple[AnyFrontEnd, ...]:
        """Return what identifies the feature caches that the trial reads: an encoder's by speed."""
        if not self.has_encoder:
            return (self.front_end,)
        return tuple(
            EncoderFrontEnd(
                self.encoder, self.encoder_layer, int(speed), self.f_max, self.resampling
            )
            for speed in self.encoder_speed.split("+")
        )

    @property
    def front_end(self) -> FrontEnd:
        """Return the log-mel front end, which a trial with an encoder does not use."""
        f_max = self.sample_rate / 2 if self.f_max is None else self.f_max
        compression: Compression = "pcen" if self.normalise == "pcen" else "db"
        stft = (self.sample_rate, self.n_fft, self.hop_length)
        return FrontEnd(*stft, self.n_mels, self.f_min, f_max, compression, self.resampling)

    @property
    def clip_frames(self) -> int:
        """Return the frames of a clip of the notebook's `rate // 1000 · milliseconds` samples."""
        samples = int(self.sample_rate // 1000 * (self.clip_seconds * 1000))
        return self.front_end.frames(samples)

    @classmethod
    def from_saved(cls, values: Mapping[str, Any]) -> TrialConfig:
        """Return the config that an earlier release, or this one, saved as `values`."""
        return cls().replace({**BEFORE_ADDED, **values})

    def replace(self, values: Mapping[str, Any]) -> TrialConfig:
        """Return a copy with `values`; raise `UserError` for an unknown field or a bad value."""
        for name in values:
            if name not in FIELDS:
                raise UserError(f"unknown field {name!r}: {nearest(name, FIELDS)}")
        return dataclasses.replace(self, **{k: coerce(k, v) for k, v in values.items()})

    def as_dict(self) -> dict[str, Any]:
        """Return plain values by field name, for JSON and YAML."""
        return dataclasses.asdict(self)


FIELDS: dict[str, dataclasses.Field[Any]] = {f.name: f for f in dataclasses.fields(TrialConfig)}
# What trials did before a field was added, where this is not the field's default.
BEFORE_ADDED: Mapping[str, Any] = {"resampling": "hann"}
WANTED = {"encoder": "the path of its file, or none", "encoder_layer": "last, a name or an index"}
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text",
          type(None): "null"}  # fmt: skip
_hints = functools.cache(get_type_hints)


def coerce(name: str, value: Any) -> Any:
    """Convert YAML's `10` for a float or text field, `1e1` for an int field, lists of speeds."""
    if isinstance(value, bool):
        return value
    if name == "encoder_speed" and isinstance(value, list | tuple):
        whole = all(type(speed) is int and 0 < speed < 10 for speed in value)
        return "+".join(map(str, value)) if whole else value
    if name in ("encoder_layer", "encoder_speed") and isinstance(value, int):
        return str(value) if abs(value) < 2**53 else value
    hint = _hints(TrialConfig)[name]
    kinds = get_args(hint) or (hint,)
    if isinstance(value, int) and float in kinds:
        return float(value) if abs(value) < 2**53 else value
    if isinstance(value, float) and int in kinds and value.is_integer():
        return int(value)
    return value


def check_fields(config: Any) -> None:
    """Hold the fields of a dataclass to their types, choices and bounds; raise `UserError`."""
    owner: type = type(config)
    for spec in dataclasses.fields(owner):
        name, value, hint = spec.name, getattr(config, spec.name), _hints(owner)[spec.name]
        kinds, shown = get_args(hint) or (hint,), reprlib.repr(value)
        if value is None or isinstance(value, bool):
            shown = "null" if value is None else str(value).lower()
        if get_origin(hint) is Literal:
            if value not in kinds:
                raise UserError(f"{name}: {shown} is not one of {', '.join(map(str, kinds))}")
        elif type(value) not in kinds and type(value) is not get_origin(hint):
            wanted = " or ".join(_KINDS.get(kind, kind.__name__) for kind in kinds)
            give = f": give {WANTED[name]}" if name in WANTED else ""
            raise UserError(f"{name}: {shown} is not {wanted}{give}")
        elif value is not None and "low" in spec.metadata:
            low, high = spec.metadata["low"], spec.metadata["high"]
            if not low <= value <= high:  # true of NaN as well
                least, most = (str(x) if isinstance(x, int) else f"{x:g}" for x in (low, high))
                raise UserError(f"{name}: {shown} is outside {least} to {most}")


PRESETS: dict[str, TrialConfig] = {
    "baseline": TrialConfig(),
    # The notebook's own settings, with its defects: validation items are augmented, the sampler
    # counts classes in training and validation, 61 % of the bands are above 2 kHz, and (with the
    # protocol `recording`) patients are in both training and validation.
    "notebook": TrialConfig(
        sample_rate=44_100,
        clip_seconds=20.0,
        n_fft=1024,
        hop_length=512,
        n_mels=64,
        f_min=0.0,
        resampling="hann",
        channels=2,
        pad="silence",
        crop="start",
        normalise="none",
        augment_validation=True,
        width=8,
        lr=1e-3,
        batch_size=128,
        balance="sampler_all",
        precision="float32",
    ),
}


def preset(name: str) -> TrialConfig:
    """Return the preset `name`; raise `UserError` for an unknown one."""
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}: {nearest(name, PRESETS)}")
    return PRESETS[name]
