"""Complete the headers of audio files that would be read in part, or not at all."""

from __future__ import annotations

import struct
from typing import NamedTuple

_MIN_SECONDS = 0.1  # of sound beyond the announced end; less is padding


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
    if len(beyond) <= bytes_per_second * _MIN_SECONDS or not any(beyond):
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
