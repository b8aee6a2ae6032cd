"""Decode audio files with libsndfile."""

from __future__ import annotations

import io
import re
import stat
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile

from resp_tune.data.sounds.container_repair import repair_container
from resp_tune.data.sounds.remarks import Remark
from resp_tune.errors import UserError

MIN_SECONDS = 0.1  # shorter than any breath
MIN_RATE, MAX_RATE = 100, 768_000  # Hz
_MAX_SAMPLES_PER_BYTE = 8192  # FLAC's largest blocks of silence hold some 5000 per byte
_BLOCK = 1 << 20  # samples per channel that are decoded at once where the length is unknown
_GIT_LFS = b"version https://git-lfs"
# In libsndfile's log of a wav, AIFF, AU, W64 or RF64 that is cut off.
_SHORTER = re.compile(
    r"^\s*(?:data|SSND|Data Size|riff|Riff size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE
)


class AudioError(UserError):
    """An audio file that cannot be used: `'<path>' <defect>`."""

    def __init__(self, path: str | Path, defect: str) -> None:
        super().__init__(f"'{path}' {defect}")
        self.path, self.defect = path, defect

    def __reduce__(self) -> tuple[type[AudioError], tuple[str | Path, str]]:
        """Let it pass between processes, where an exception is made again from its arguments."""
        return AudioError, (self.path, self.defect)


@dataclass(frozen=True)
class Audio:
    """A decoded file: float32 `[channels, samples]`, Hz, and libsndfile's name of the encoding."""

    samples: npt.NDArray[np.float32]
    sample_rate: int
    subtype: str
    remarks: tuple[Remark, ...]


def read_audio(path: str | Path) -> tuple[npt.NDArray[np.float32], int]:
    """Return all samples, float32 `[channels, samples]`, and the sample rate in Hz.

    Integer formats are scaled to −1…1; a float file keeps its values, which may exceed that range.
    Raises `AudioError` if the file is missing, empty or not audio, or has a sample that is not
    finite.
    """
    audio = decode(path, read_content(path))
    return audio.samples, audio.sample_rate


def read_content(path: str | Path) -> bytes:
    """Return the bytes of a regular file; raise `AudioError` if it cannot be read or is empty."""
    path = Path(path)
    try:
        if path.is_dir():
            raise AudioError(path, "is a folder, not an audio file")
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait for a writer
            raise AudioError(path, "is not a regular file")
        content = path.read_bytes()
    except OSError as error:
        raise AudioError(path, f"cannot be opened: {error.strerror}") from error
    if not content:
        raise AudioError(path, "is empty (0 bytes)")
    if content.startswith(_GIT_LFS):
        raise AudioError(path, "is a git-lfs pointer, not audio: run git lfs pull")
    return content


def decode(path: str | Path, content: bytes) -> Audio:
    """Decode the content of the file `path`, which is only named in errors.

    Raises `AudioError`, whatever libsndfile or soundfile raises.
    """
    whole, problem = repair_container(content)
    remarks = [] if problem is None else [Remark("unfinished", problem)]
    try:
        # soundfile gets the content, because it encodes a path as strict UTF-8.
        with _Sequential(io.BytesIO(whole)) as file:
            _check_claims(path, file, len(content))
            samples = _read_all(path, file)
            rate, subtype = int(file.samplerate), str(file.subtype)
            if cut := _cut_off(file, len(samples)):
                remarks.append(Remark("cut off", cut))
    except AudioError:
        raise
    except Exception as error:
        reason = str(getattr(error, "error_string", error)).strip().rstrip(".")
        raise AudioError(path, f"cannot be read as wav or FLAC: {reason}") from error
    if not np.isfinite(samples).all():
        raise AudioError(path, "holds samples that are not numbers (NaN or infinite)")
    return Audio(np.ascontiguousarray(samples.T), rate, subtype, tuple(remarks))


class _Sequential(soundfile.SoundFile):  # type: ignore[misc]  # soundfile has no types
    """A file that is read from its beginning to its end.

    soundfile seeks after each read where it can, which fails in a FLAC file of unknown length, and
    asks for the number of samples where it cannot (GSM 6.10).
    """

    def seekable(self) -> bool:
        return False


def _read_all(path: str | Path, file: _Sequential) -> npt.NDArray[np.float32]:
    """Return all samples, `[samples, channels]`; raise `AudioError` if some are missing."""
    claimed = file.frames
    known = claimed < np.iinfo(np.int64).max
    parts: list[npt.NDArray[np.float32]] = []
    while True:
        asked = max(1, claimed) if known and not parts else _BLOCK
        part = file.read(asked, dtype="float32", always_2d=True)
        if len(part):
            parts.append(part)
        if len(part) < asked or known:
            break
    if not parts:
        raise AudioError(path, "holds no samples")
    samples = parts[0] if len(parts) == 1 else np.concatenate(parts)
    # The length of an MP3 is an estimate of its encoder's delay.
    if known and len(samples) != claimed and file.format != "MP3":
        raise AudioError(path, f"is cut off: {len(samples)} of {claimed} samples")
    return samples


def _check_claims(path: str | Path, file: _Sequential, size: int) -> None:
    """Reject a damaged header before memory is allocated for what it claims."""
    frames, rate = file.frames, file.samplerate
    if frames <= 0:
        raise AudioError(path, "holds no samples")
    if not MIN_RATE <= rate <= MAX_RATE:
        raise AudioError(path, f"claims {rate} Hz, outside {MIN_RATE} to {MAX_RATE} Hz")
    unknown = file.format == "FLAC" and frames == np.iinfo(np.int64).max
    if frames * file.channels > size * _MAX_SAMPLES_PER_BYTE and not unknown:
        raise AudioError(path, f"claims {frames} samples, more than a file of its size can hold")


def _cut_off(file: _Sequential, samples: int) -> str | None:
    """Describe a file that ends too early, which libsndfile reads as a shorter one and logs."""
    if file.format == "MP3" and samples < file.frames - file.samplerate * MIN_SECONDS:
        return f"{samples} of {file.frames} announced samples"  # by its Xing tag
    if "lacks an end-of-stream bit" in file.extra_info:  # Ogg
        return "its end is missing"
    match = _SHORTER.search(file.extra_info)
    if match is None:
        return None
    announced, present = int(match[1]), int(match[2])
    # A program that wrote into a pipe did not know the length and announced 0 or the maximum.
    if not present < announced < 0x7FFF0000:
        return None
    return f"{present} of {announced} announced bytes"
