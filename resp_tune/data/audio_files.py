"""Audio files, decoded with libsndfile: headers, samples, and files that occur twice."""

from __future__ import annotations

import contextlib
import re
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from resp_tune.common.text import join_names, plural
from resp_tune.errors import UserError

MIN_SECONDS = 0.1  # shorter than any breath
MIN_RATE, MAX_RATE = 100, 768_000  # Hz
_BLOCK = 1 << 18  # bytes of a file that are compared at once
_MAX_SAMPLES_PER_BYTE = 8192  # FLAC's largest blocks of silence hold some 5000 per byte


class AudioError(UserError):
    """An audio file that cannot be read; the message names it."""


@dataclass(frozen=True)
class Header:
    """The format of a file. `sample_rate` is in Hz, `samples` counts one channel.

    `problem` describes a defect that leaves the file usable.
    """

    sample_rate: int
    channels: int
    samples: int
    problem: str | None

    @property
    def seconds(self) -> float:
        """Return the length in seconds."""
        return self.samples / self.sample_rate


def read_audio(path: str | Path) -> tuple[npt.NDArray[np.float32], int]:
    """Return all samples, float32 `[channels, samples]`, and the sample rate in Hz.

    Integer formats are scaled to −1…1; a float file keeps its values, which may exceed that range.
    Raises `AudioError` if the file is missing, empty or not audio, or has a sample that is not
    finite.
    """
    path = Path(path)
    with _checked(path), soundfile.SoundFile(path) as file:
        _check_claims(path, file.frames, file.channels, file.samplerate)
        samples, rate = file.read(dtype="float32", always_2d=True), file.samplerate
        if len(samples) != file.frames:
            raise AudioError(f"'{path}' is cut off: {len(samples)} of {file.frames} samples")
    if not np.isfinite(samples).all():
        raise AudioError(f"'{path}' holds samples that are not numbers (NaN or infinite)")
    return np.ascontiguousarray(samples.T), int(rate)


def read_header(path: str | Path) -> Header:
    """Return rate, channels and length without decoding; raise `AudioError` for a bad file.

    Two defects do not show in a header: a float file is decoded to find NaN, and the last sample of
    a FLAC file is read to find out whether it was cut off.
    """
    path = Path(path)
    with _checked(path):
        info = soundfile.info(path, verbose=True)
        _check_claims(path, info.frames, info.channels, info.samplerate)
        if info.format == "FLAC":
            with soundfile.SoundFile(path) as file:
                file.seek(info.frames - 1)
                if len(file.read(1)) != 1:
                    raise AudioError(f"'{path}' is cut off: its end cannot be read")
    if (seconds := info.frames / info.samplerate) < MIN_SECONDS:
        raise AudioError(f"'{path}' is {seconds:.3g} s long; at least {MIN_SECONDS:g} s")
    if info.subtype in ("FLOAT", "DOUBLE"):
        read_audio(path)
    return Header(info.samplerate, info.channels, info.frames, _cut_off(path, info.extra_info))


@contextlib.contextmanager
def _checked(path: Path) -> Iterator[None]:
    """Refuse what is not a file with content; turn errors of reading it into an `AudioError`."""
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
    try:
        yield
    except (soundfile.SoundFileError, OSError) as error:
        reason = str(getattr(error, "error_string", error)).strip().rstrip(".")
        raise AudioError(f"'{path}' cannot be read as wav or FLAC: {reason}") from error


def _check_claims(path: Path, frames: int, channels: int, rate: int) -> None:
    """Reject a damaged header before memory is allocated for what it claims."""
    if frames <= 0:
        raise AudioError(f"'{path}' holds no samples")
    if not MIN_RATE <= rate <= MAX_RATE:
        raise AudioError(f"'{path}' claims {rate} Hz, outside {MIN_RATE} to {MAX_RATE} Hz")
    if frames * channels > path.stat().st_size * _MAX_SAMPLES_PER_BYTE:
        raise AudioError(f"'{path}' claims {frames} samples, more than a file of its size can hold")


def _cut_off(path: Path, libsndfile_log: str) -> str | None:
    """Describe a wav that ends too early, which libsndfile reads as a shorter one and only logs."""
    pattern = r"^\s*data\s*: (\d+) \(should be (\d+)\)"
    match = re.search(pattern, libsndfile_log, re.MULTILINE)
    if match is None:
        return None
    announced, present = int(match[1]), int(match[2])
    # A program that wrote into a pipe did not know the length and announced 0 or the maximum.
    if not present < announced < 0x7FFF0000:
        return None
    return f"'{path}' is cut off: {present} of {announced} announced bytes are there; they are used"


def drop_duplicates(paths: Iterable[Path]) -> tuple[list[Path], list[str]]:
    """Keep the first file of each stem, which is the least deep; report copies and conflicts."""
    first: dict[str, Path] = {}
    copies: list[str] = []
    problems = []
    for path in paths:
        kept = first.setdefault(path.stem, path)
        if kept is not path and _same_content(kept, path):
            copies.append(str(path))
        elif kept is not path:
            problems.append(
                f"duplicate '{path}' is left out: it differs from '{kept}' of the same name"
            )
    if copies:
        problems.append(
            f"{plural(len(copies), 'recording')} a second time in another folder or format, with "
            f"the same content: one of each is used ({join_names(copies, 1)})"
        )
    return list(first.values()), problems


def _same_content(one: Path, other: Path) -> bool:
    """Compare the samples of a wav and a FLAC; else the bytes at start, middle and end.

    Files of up to 768 KiB are compared whole.
    """
    if one.suffix.lower() != other.suffix.lower():
        try:
            (samples, rate), (other_samples, other_rate) = read_audio(one), read_audio(other)
        except AudioError:
            return False  # reported as a conflict
        return rate == other_rate and np.array_equal(samples, other_samples)
    size = one.stat().st_size
    if size != other.stat().st_size:
        return False
    with one.open("rb") as a, other.open("rb") as b:
        for start in (0, max(0, (size - _BLOCK) // 2), max(0, size - _BLOCK)):
            a.seek(start)
            b.seek(start)
            if a.read(_BLOCK) != b.read(_BLOCK):
                return False
    return True
