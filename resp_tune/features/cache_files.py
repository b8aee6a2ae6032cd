"""The files of a feature cache: how they are written, checked and described."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from resp_tune.common.fault_points import fault_point

FORMAT = 1
FRAMES = "frames.f16"
CENTRES = "centres.f32"


@dataclass(frozen=True)
class FrameKind:
    """What the index of a cache says besides its sizes, and its last row, if it has one."""

    about: Mapping[str, Any]
    last_row: np.ndarray | None


class CacheWriter:
    """Write a cache into a partial folder, which `finish` renames to `folder`.

    `stack` closes the file and removes the partial folder if it remains.
    """

    def __init__(self, stack: contextlib.ExitStack, folder: Path, kind: FrameKind) -> None:
        self.folder, self.kind = folder, kind
        self.part = folder.with_suffix(".part")
        shutil.rmtree(self.part, ignore_errors=True)
        self.part.mkdir()
        stack.callback(shutil.rmtree, self.part, ignore_errors=True)
        self.file: IO[bytes] = stack.enter_context((self.part / FRAMES).open("wb"))
        self.count: list[int] = []
        self.centres: list[np.ndarray] = []
        self.crc = self.rows = 0

    def append(self, values: np.ndarray, centres: np.ndarray | None) -> None:
        """Add the frames of the next recording, and their centres if the kind has them."""
        self.count.append(len(values))
        self._write(values)
        if centres is not None:
            self.centres.append(centres)
        fault_point("cache-append")

    def finish(self) -> None:
        """Write what describes the frames, and give the cache its name."""
        if self.kind.last_row is not None:
            self._write(self.kind.last_row)
        self.file.flush()  # no fsync: after a power cut the checksum fails and it is recomputed
        index = {
            "format": FORMAT,
            **self.kind.about,
            "rows": self.rows,
            "count": self.count,
            "crc32": self.crc,
        }
        if self.centres:
            data = np.concatenate(self.centres).astype(np.float32).tobytes()
            (self.part / CENTRES).write_bytes(data)
            index["centres_crc32"] = zlib.crc32(data)
        body = json.dumps(index)
        digest = hashlib.sha256(body.encode()).hexdigest()
        (self.part / "index.json").write_text(f"{digest}\n{body}\n")
        fault_point("cache-finished")
        shutil.rmtree(self.folder, ignore_errors=True)
        self.part.rename(self.folder)

    def _write(self, values: np.ndarray) -> None:
        data = np.ascontiguousarray(values).data
        self.file.write(data)
        self.crc = zlib.crc32(data, self.crc)
        self.rows += len(values)


def read_index(folder: Path) -> dict[str, Any] | None:
    """Return the index, or None if the cache is missing, truncated or of another format."""
    try:
        digest, body = (folder / "index.json").read_text().splitlines()
        size = (folder / FRAMES).stat().st_size
    except (OSError, ValueError):
        return None
    if hashlib.sha256(body.encode()).hexdigest() != digest:
        return None
    index: dict[str, Any] = json.loads(body)
    if index["format"] != FORMAT or size != index["rows"] * frame_size(index) * 2:
        return None
    if "centres_crc32" in index:
        try:
            whole = (folder / CENTRES).stat().st_size == index["rows"] * 4
        except OSError:
            return None
        return index if whole else None
    return index


def is_valid(folder: Path) -> bool:
    """Return whether a cache is complete, each byte as it was written."""
    index = read_index(folder)
    if index is None:
        return False
    crc = 0
    with (folder / FRAMES).open("rb") as file:
        while block := file.read(1 << 24):
            crc = zlib.crc32(block, crc)
    centres = "centres_crc32" not in index or (
        zlib.crc32((folder / CENTRES).read_bytes()) == index["centres_crc32"]
    )
    return crc == int(index["crc32"]) and centres


def frame_size(index: Mapping[str, Any]) -> int:
    """Return the number of values of a frame in the cache with this index."""
    return int(index["dim"] if "dim" in index else index["front_end"]["n_mels"])
