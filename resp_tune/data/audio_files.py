"""Audio files decoded with libsndfile: their samples, and what their headers say."""

from __future__ import annotations

import logging
import re
import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from resp_tune.errors import UserError

log = logging.getLogger(__name__)

MIN_SECONDS = 0.1  # shorter than any breath, and than one window of a front end
RATES = (100, 768_000)  # Hz
_SAMPLES_PER_BYTE = 8192  # FLAC's largest blocks of silence hold some 5000 a byte


class AudioError(UserError):
    """An audio file that cannot be read; one line that names it."""


@dataclass(frozen=True)
class Header:
    """What a file says of itself. `samples` counts one channel, `sample_rate` is in Hz.

    `problem` is a line about a file that can be used but is not as it should be.
    """

    sample_rate: int
    channels: int
    samples: int
    problem: str | None

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return self.samples / self.sample_rate


def read_audio(path: str | Path) -> tuple[npt.NDArray[np.float32], int]:
    """All samples, float32 `[channels, samples]`, and the sample rate in Hz.

    Integer formats come out in −1…1; a float file comes out as it was written, which may exceed
    that range. Raises `AudioError` for what is missing, empty, not audio, or holds a sample that
    is not finite.
    """
    path = Path(path)
    _check_file(path)
    try:
        with soundfile.SoundFile(path) as file:
            _check_claims(path, file.frames, file.channels, file.samplerate)
            samples, rate = file.read(dtype="float32", always_2d=True), file.samplerate
            if len(samples) != file.frames:
                raise AudioError(f"'{path}' is cut off: {len(samples)} of {file.frames} samples")
    except (soundfile.SoundFileError, OSError) as error:
        raise _unreadable(path, error) from error
    if not np.isfinite(samples).all():
        raise AudioError(f"'{path}' holds samples that are not numbers (NaN or infinite)")
    return np.ascontiguousarray(samples.T), int(rate)


def read_header(path: str | Path) -> Header:
    """Rate, channels and length without decoding; raises `AudioError` for what is no recording.

    What a header cannot tell is looked up in the data: float files are decoded in search of NaN,
    and the end of a compressed file is read to see that it is there.
    """
    path = Path(path)
    _check_file(path)
    try:
        info = soundfile.info(path, verbose=True)
        _check_claims(path, info.frames, info.channels, info.samplerate)
        if info.format == "FLAC":
            with soundfile.SoundFile(path) as file:
                file.seek(info.frames - 1)
                if len(file.read(1)) != 1:
                    raise AudioError(f"'{path}' is cut off: its end cannot be read")
    except (soundfile.SoundFileError, OSError) as error:
        raise _unreadable(path, error) from error
    if (seconds := info.frames / info.samplerate) < MIN_SECONDS:
        raise AudioError(f"'{path}' is {seconds:.3g} s long; at least {MIN_SECONDS:g} s")
    if info.subtype in ("FLOAT", "DOUBLE"):
        read_audio(path)
    return Header(info.samplerate, info.channels, info.frames, _cut_off(path, info.extra_info))


def _check_file(path: Path) -> None:
    try:
        if path.is_dir():
            raise AudioError(f"'{path}' is a folder, not an audio file")
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for a writer
            raise AudioError(f"'{path}' is not a regular file")
        if status.st_size == 0:
            raise AudioError(f"'{path}' is empty (0 bytes)")
    except OSError as error:
        raise AudioError(f"'{path}' cannot be opened: {error.strerror}") from error


def _check_claims(path: Path, frames: int, channels: int, rate: int) -> None:
    """Refuse what a damaged header claims, before memory is taken for it."""
    if frames <= 0:
        raise AudioError(f"'{path}' holds no samples")
    if not RATES[0] <= rate <= RATES[1]:
        raise AudioError(f"'{path}' claims {rate} Hz; recordings have {RATES[0]} to {RATES[1]} Hz")
    if frames * channels > path.stat().st_size * _SAMPLES_PER_BYTE:
        raise AudioError(f"'{path}' claims {frames} samples, more than a file of its size can hold")


def _unreadable(path: Path, error: Exception) -> AudioError:
    said = str(getattr(error, "error_string", error)).strip().rstrip(".")
    return AudioError(f"'{path}' cannot be read as wav or FLAC: {said}")


def _cut_off(path: Path, log: str) -> str | None:
    """Libsndfile reads a wav that ends too early as a shorter one, and says so only in its log."""
    match = re.search(r"^\s*data\s*: (\d+) \(should be (\d+)\)", log, re.MULTILINE)
    if match is None:
        return None
    announced, there = int(match[1]), int(match[2])
    # A program that wrote into a pipe could not know the length and announced 0 or the largest.
    if not there < announced < 0x7FFF0000:
        return None
    return f"'{path}' is cut off: {there} of {announced} announced bytes; used as far as it goes"
