"""Decode audio files with libsndfile, after repairing headers, and remark on what is odd."""

from __future__ import annotations

import io
import re
import stat
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import soundfile

from resp_tune.errors import UserError

MIN_SECONDS = 0.1  # shorter than any breath
MIN_RATE, MAX_RATE = 100, 768_000  # Hz
_MAX_SAMPLES_PER_BYTE = 8192  # FLAC's largest blocks of silence hold some 5000 per byte
_BLOCK = 1 << 20  # samples per channel that are decoded at once where the length is unknown
_GIT_LFS = b"version https://git-lfs"
_PADDING_SECONDS = 0.1  # beyond the announced end of a wav, up to which it is no sound
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


class Remark(NamedTuple):
    """A defect that leaves a file usable: its kind, and what it is in this file."""

    kind: str
    detail: str

    def __str__(self) -> str:
        one, _, consequence = _TEXTS[self.kind]
        return f"{one} ({self.detail}): {consequence}"


_TEXTS = {  # of each kind: what is wrong with one and with several files, and what is done
    "unfinished": ("has an unfinished header", "have unfinished headers", "read to the end"),
    "cut off": ("is cut off", "are cut off", "what is there is used"),
    "channel": (
        "has too little sound on its first channel",
        "have too little sound on their first channel",
        "another channel is used",
    ),
    "above 1": ("exceeds ±1", "exceed ±1", "used as it is"),
    "integers": ("holds integers as floats", "hold integers as floats", "scaled to ±1"),
}


def remark_lines(remarks: Mapping[Path, Iterable[Remark]]) -> list[str]:
    """Return a line for each kind of remark, with the number of files and an example."""
    by_kind: dict[str, list[tuple[Path, Remark]]] = {}
    for path, own in remarks.items():
        for remark in own:
            by_kind.setdefault(remark.kind, []).append((path, remark))
    lines = []
    for kind, found in by_kind.items():
        (path, first), (_, several, consequence) = found[0], _TEXTS[kind]
        if len(found) == 1:
            lines.append(f"'{path}' {first}")
            continue
        what = f"{len(found)} recordings {several}"
        lines.append(f"{what}: {consequence}; e.g. '{path}' ({first.detail})")
    return lines


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


def repair_container(content: bytes) -> tuple[bytes, str | None]:
    """Return `content` in a form that libsndfile reads to its end, and what was repaired.

    A wav whose header was never finished announces no sound, or less than the file holds. An MP3
    of variable bit rate without a Xing tag is read for the length that its first frame suggests.
    """
    if content[:4] == b"RIFF" and content[8:12] == b"WAVE":
        return _complete_wav(content)
    return _tag_mp3(content), None


def _complete_wav(content: bytes) -> tuple[bytes, str | None]:
    position, bytes_per_second = 12, 0
    while content[position : position + 4] != b"data":
        if position + 8 > len(content):
            return content, None
        name, size = content[position : position + 4], _size(content, position)
        if name == b"fmt " and position + 20 <= len(content):
            bytes_per_second = struct.unpack_from("<I", content, position + 16)[0]
        position += 8 + size + size % 2
    if (start := position + 8) > len(content):
        return content, None
    announced, present = _size(content, position), len(content) - start
    beyond = content[start + announced :]
    if len(beyond) <= bytes_per_second * _PADDING_SECONDS or not any(beyond):
        return content, None
    if _is_chunk(beyond) or _is_chunk(beyond[announced % 2 :]):
        return content, None
    sizes = (struct.pack("<I", min(n, 0xFFFFFFFF)) for n in (len(content) - 8, present))
    riff, data = sizes
    whole = b"".join((b"RIFF", riff, content[8 : position + 4], data, content[start:]))
    return whole, f"{announced} of {present} bytes announced"


def _size(content: bytes, position: int) -> int:
    return int.from_bytes(content[position + 4 : position + 8], "little")


def _is_chunk(rest: bytes) -> bool:
    """Tell whether `rest` begins with a RIFF chunk, such as tags after the sound."""
    is_name = all(0x20 <= byte < 0x7F for byte in rest[:4])
    return is_name and 8 + _size(rest, 0) <= len(rest) + 1


class _Mp3Frame(NamedTuple):
    """The length in bytes of an MPEG audio frame of layer III, and where its tag would be."""

    size: int
    tag: int


_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8000)}  # Hz
_MPEG_1 = 3
_KBIT = {
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}  # per second, by whether it is MPEG 1
_TAGS = (b"Xing", b"Info")


def _mp3_frame(head: bytes) -> _Mp3Frame | None:
    """Read the four bytes at the start of a frame (ISO 11172-3, 2.4.1.3)."""
    if len(head) < 4 or head[0] != 0xFF or head[1] & 0xE6 != 0xE2:  # sync word and layer III
        return None
    version, rate, kbit = head[1] >> 3 & 3, head[2] >> 2 & 3, head[2] >> 4
    if version not in _RATES or rate == 3 or kbit in (0, 15):
        return None
    first, mono = version == _MPEG_1, head[3] >> 6 == 3
    samples = 1152 if first else 576
    size = samples // 8 * _KBIT[first][kbit] * 1000 // _RATES[version][rate] + (head[2] >> 1 & 1)
    side = (17 if mono else 32) if first else (9 if mono else 17)
    return _Mp3Frame(size, 4 + side)


def _tag_mp3(content: bytes) -> bytes:
    """Put a frame with a Xing tag, which holds the number of frames, before an MP3 without one."""
    start = 0
    while content[start : start + 3] == b"ID3" and len(content) > start + 10:
        a, b, c, d = content[start + 6 : start + 10]
        start += 10 + (a << 21 | b << 14 | c << 7 | d)
    head = content[start : start + 4]
    first = _mp3_frame(head)
    if first is None:
        return content
    tag = start + first.tag
    if content[tag : tag + 4] in _TAGS or content[start + 36 : start + 40] == b"VBRI":
        return content
    count, position = 0, start
    while frame := _mp3_frame(content[position : position + 4]):
        count, position = count + 1, position + frame.size
    if count < 3:  # not an MP3 after all
        return content
    for kbit in range(1, 15):  # the smallest frame that has room for the tag
        silent = bytes((head[0], head[1] | 1, head[2] & 0x0D | kbit << 4, head[3]))
        frame = _mp3_frame(silent)
        if frame is not None and frame.size >= frame.tag + 12:
            body = silent.ljust(frame.tag, b"\0") + struct.pack(">4sII", b"Xing", 1, count)
            return content[:start] + body.ljust(frame.size, b"\0") + content[start:]
    return content
