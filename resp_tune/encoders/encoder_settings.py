"""What an encoder wants to hear, from the YAML beside its file or from the file itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

from resp_tune.common.text import shorten
from resp_tune.config import bounded, check_fields, setting
from resp_tune.errors import UserError, nearest

UNKNOWN_LICENCE = "not stated"


@dataclass(frozen=True)
class MelSettings:
    """The log-mel frames of an encoder that does not take a waveform.

    `(log(max(mel power, floor)) − mean) / sd`, of torchaudio's `MelSpectrogram`.
    """

    n_fft: int = bounded(400, 16, 16_384, "samples of an STFT window")
    hop_length: int = bounded(160, 1, 16_384, "samples between frames")
    n_mels: int = bounded(64, 1, 512, "mel bands")
    f_min: float = bounded(0.0, 0.0, 96_000.0, "Hz, lower edge of the lowest band")
    f_max: float | None = bounded(None, 1.0, 96_000.0, "Hz, upper edge; null: half the rate")
    power: float = bounded(2.0, 1.0, 2.0, "1: magnitudes; 2: powers")
    centre: bool = setting(False, "whether frames are centred, with reflected edges")
    scale: Literal["htk", "slaney"] = setting("htk", "of the mel bands")
    norm: Literal["none", "slaney"] = setting("none", "of the triangles; slaney: equal areas")
    log: Literal["ln", "log10", "db"] = setting("ln", "db: 10 · log10")
    floor: float = bounded(1e-10, 1e-30, 1.0, "least power that is logged")
    mean: float = bounded(0.0, -1e6, 1e6, "that is subtracted from the logarithm")
    sd: float = bounded(1.0, 1e-6, 1e6, "that the difference is divided by")


@dataclass(frozen=True)
class EncoderSettings:
    """What an encoder wants, part of the key of its feature caches; `window` in samples at `rate`.

    `layout` says what the axes of feature maps of 4 and of 3 axes are: N (batch, 1), T (time),
    F (frequency), C (channel).
    """

    rate: int
    window: int
    hop: int
    level: float | None = None
    scale: float = 1.0
    input: Literal["waveform", "log-mel"] = "waveform"
    mel: MelSettings | None = None
    layout: tuple[str, ...] = ()


@dataclass(frozen=True)
class SidecarFile:
    """The YAML beside an encoder's file; null: what the file says, or the default."""

    name: str | None = setting(None, "of the encoder; default: its file's name")
    licence: str | None = setting(None, "of its weights, in one line")
    rate: int = bounded(16_000, 1000, 192_000, "Hz")
    window: float | None = bounded(None, 0.01, 600.0, "s; default: the length of its input")
    hop: float | None = bounded(None, 0.001, 600.0, "s between windows; default: half a window")
    level: float | None = bounded(None, -100.0, 0.0, "dB full scale, RMS each recording is set to")
    scale: float = bounded(1.0, 1e-6, 1e6, "of the samples, which are in −1…1; 32768 for integers")
    input: Literal["waveform", "log-mel"] = setting("waveform", "what it takes")
    layout: tuple[str, ...] = setting((), "axes of its feature maps, such as NTFC or NTC")
    last: str | None = setting(None, "layer that `encoder_layer: last` means")
    mel: MelSettings | None = setting(None, "of input: log-mel")


def read_sidecar(where: str, values: Any) -> SidecarFile:
    """Return the settings in `values`, a YAML mapping; raise `UserError`, which starts `where`."""
    if values is None:
        return SidecarFile()
    if not isinstance(values, dict):
        raise UserError(f"{where} is not a mapping of setting to value")
    try:
        given = {str(key): value for key, value in values.items()}
        if "mel" in given and given["mel"] is not None:
            if not isinstance(given["mel"], dict):
                raise UserError("mel: not a mapping of setting to value")
            given["mel"] = _made(MelSettings, {str(k): v for k, v in given["mel"].items()})
        if isinstance(given.get("layout"), str):
            given["layout"] = given["layout"].split()
        if isinstance(given.get("layout"), list):
            given["layout"] = tuple(map(str, given["layout"]))
        if not isinstance(given.get("layout", ()), tuple):
            shown = "null" if given["layout"] is None else shorten(str(given["layout"]), 80)
            raise UserError(f"layout: {shown} is no list: give [NTFC, NTC], or leave it out")
        if type(given.get("last")) is int:
            given["last"] = str(given["last"])
        settings: SidecarFile = _made(SidecarFile, given)
        if (settings.input == "log-mel") != (settings.mel is not None):
            raise UserError("'input: log-mel' and 'mel: {…}' are given together")
        for axes in settings.layout:
            if sorted(axes) not in (["C", "F", "N", "T"], ["C", "N", "T"]) or axes[0] != "N":
                raise UserError(f"layout: {axes!r} is not N followed by T, F and C, or T and C")
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    return settings


def _made(owner: Any, values: Mapping[str, Any]) -> Any:
    """Return a dataclass with `values`, its fields checked."""
    hints = get_type_hints(owner)
    for key in values:
        if key not in hints:
            raise UserError(f"unknown setting {key!r}: {nearest(key, hints)}")
    made = owner(**{key: _as_float(hints[key], value) for key, value in values.items()})
    check_fields(made)
    return made


def _as_float(hint: Any, value: Any) -> Any:
    """Convert YAML's `1` for a float setting."""
    kinds = get_args(hint) or (hint,)
    whole = type(value) is int and float in kinds and abs(value) < 2**53
    return float(value) if whole else value
