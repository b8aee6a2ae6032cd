"""The feature cache: log-mel frames on disk, computed once, memory-mapped by all trials of a node.

A cache is a folder `<cache folder>/features/<key>/` with `frames.f16` (float16, `[rows, n_mels]`)
and `index.json`. Its key is a hash of the recordings' bytes and the front end, so that a changed
recording or setting has another cache. A folder appears by a rename, complete or not at all.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from resp_tune.common.fault_points import fault_point
from resp_tune.common.paths import cache_folder, full_disk_in_one_line
from resp_tune.config import FrontEnd, Resampling
from resp_tune.errors import RunError
from resp_tune.features.logmel import Frames, log_mels, silence
from resp_tune.features.parallel import recording_pool

FORMAT = 1
ELSEWHERE = ", or set RESP_TUNE_CACHE to a folder on another disk"
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class AudioSource:
    """A recording to cache. `digest`: hash of its file.

    `load(rate, resampling)` gives float32 `[samples]` at `rate` Hz.
    """

    stem: str
    digest: str
    load: Callable[[int, Resampling], torch.Tensor]


def cache_key(sources: Sequence[AudioSource], front_end: FrontEnd) -> str:
    """Return 24 hex digits that change with the recordings' bytes and order, and the front end."""
    content = [FORMAT, asdict(front_end), [[s.stem, s.digest] for s in sources]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def expected_bytes(seconds: Iterable[float], front_end: FrontEnd) -> int:
    """Return the size of the frames of recordings that last `seconds`, to within a frame each."""
    frames = sum(1 + int(s * front_end.sample_rate) // front_end.hop_length for s in seconds)
    return (frames + 1) * front_end.n_mels * np.dtype(np.float16).itemsize


@dataclass(frozen=True)
class FeatureCaches:
    """The feature caches of some recordings, below `root` or in the cache folder of the machine.

    Small enough to send to every trial: a process that needs a missing cache makes it, and others
    that need the same one wait. `filled` are front ends whose caches are known to be complete.
    Caches beyond `limit_bytes` are removed, least recently used first, but none that a running
    process has filled or opened.
    """

    root: Path | None
    sources: tuple[AudioSource, ...]
    limit_bytes: int
    filled: frozenset[FrontEnd] = frozenset()

    def folder(self, front_end: FrontEnd) -> Path:
        """Return the folder of one front end's cache."""
        root = self.root or cache_folder() / "features"
        return root / cache_key(self.sources, front_end)

    def fill(
        self, front_ends: Sequence[FrontEnd], *, workers: int = 1, progress: Progress | None = None
    ) -> tuple[FrontEnd, ...]:
        """Compute the caches of `front_ends` that are missing or damaged; return which these were.

        Front ends that share an STFT are computed in one pass. `progress(done, total)` counts
        recordings over all passes; if it raises, filling stops and leaves no partial cache.
        """
        folders = {f: self.folder(f) for f in dict.fromkeys(front_ends)}
        root = next(iter(folders.values())).parent
        root.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as locks:
            # Always lock in the same order, or two searches could wait for each other.
            for folder in sorted(folders.values()):
                locks.enter_context(FileLock(folder.with_suffix(".lock")))
            missing = tuple(f for f, folder in folders.items() if not _is_valid(folder))
            passes: dict[tuple[object, ...], list[FrontEnd]] = {}
            for f in missing:
                stft = (f.sample_rate, f.resampling, f.n_fft, f.hop_length)
                passes.setdefault(stft, []).append(f)
            done, total = itertools.count(1), len(passes) * len(self.sources)

            def report() -> None:
                if progress is not None:
                    progress(next(done), total)

            for group in passes.values():
                _compute_pass(self.sources, {f: folders[f] for f in group}, workers, report)
            for folder in folders.values():
                os.utime(folder / "index.json")
                _pin(folder)
        _evict(root, self.limit_bytes, keep=set(folders.values()))
        return missing

    def frames(self, front_end: FrontEnd, *, workers: int) -> Frames:
        """Return the frames of one front end; a process checks and opens each cache once."""
        folder = self.folder(front_end)
        if front_end not in self.filled and folder not in _PINNED:
            self.fill([front_end], workers=workers)
        return open_cache(folder)


@cache
def open_cache(folder: Path) -> Frames:
    """Memory-map a cache that is filled; all processes share one copy in memory.

    A process maps a cache once, however many trials it runs.
    """
    index = _read_index(folder)
    if index is None:
        raise RunError(f"feature cache {folder} is not readable: rerun the same command")
    _pin(folder)
    rows, n_mels = index["rows"], index["front_end"]["n_mels"]
    values = torch.from_file(
        str(folder / "frames.f16"), shared=False, size=rows * n_mels, dtype=torch.float16
    ).view(rows, n_mels)
    count = torch.tensor(index["count"], dtype=torch.int64)
    return Frames(values, count.cumsum(0) - count, count)


_PINNED: dict[Path, IO[bytes]] = {}  # that this process has filled or opened


def _pin(folder: Path) -> None:
    """Protect a cache from eviction until this process ends, by a shared lock.

    The process that fills it pins it too, as readers may come much later: Ray has to start.
    """
    handle = (folder / "index.json").open("rb")
    fcntl.flock(handle, fcntl.LOCK_SH)
    _PINNED[folder] = handle


def _compute_pass(
    sources: Sequence[AudioSource],
    folders: dict[FrontEnd, Path],
    workers: int,
    report: Callable[[], None],
) -> None:
    """Compute the caches of front ends that share an STFT; call `report` after each recording."""
    front_ends = list(folders)
    rate, resampling = front_ends[0].sample_rate, front_ends[0].resampling

    def one(source: AudioSource) -> list[np.ndarray]:
        with torch.inference_mode():
            mels = log_mels(source.load(rate, resampling), front_ends)
            return [m.to(torch.float16).numpy() for m in mels]

    # Outside the stack, because a file that could not be written fails again when it is closed.
    root = folders[front_ends[0]].parent
    with full_disk_in_one_line(root, ELSEWHERE), contextlib.ExitStack() as stack:
        writers = [_Writer(stack, folder, f) for f, folder in folders.items()]
        pool = stack.enter_context(recording_pool(workers))
        for mels in pool.map(one, sources):
            for writer, values in zip(writers, mels, strict=True):
                writer.append(values)
            report()
        for writer in writers:
            writer.finish()


class _Writer:
    """Write a cache into a partial folder, which `finish` renames to `folder`.

    `stack` closes the file and removes the partial folder if it remains.
    """

    def __init__(self, stack: contextlib.ExitStack, folder: Path, front_end: FrontEnd) -> None:
        self.folder, self.front_end = folder, front_end
        self.part = folder.with_suffix(".part")
        shutil.rmtree(self.part, ignore_errors=True)
        self.part.mkdir()
        stack.callback(shutil.rmtree, self.part, ignore_errors=True)
        self.file: IO[bytes] = stack.enter_context((self.part / "frames.f16").open("wb"))
        self.count: list[int] = []
        self.crc = self.rows = 0

    def append(self, values: np.ndarray) -> None:
        self.count.append(len(values))
        self._write(values)
        fault_point("cache-append")

    def finish(self) -> None:
        self._write(np.full((1, self.front_end.n_mels), silence(self.front_end), np.float16))
        self.file.flush()  # no fsync: after a power cut the checksum fails and it is recomputed
        index = {
            "format": FORMAT,
            "front_end": asdict(self.front_end),
            "rows": self.rows,
            "count": self.count,
            "crc32": self.crc,
        }
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


def _read_index(folder: Path) -> dict[str, Any] | None:
    """Return the index, or None if the cache is missing, truncated or of another format."""
    try:
        digest, body = (folder / "index.json").read_text().splitlines()
        size = (folder / "frames.f16").stat().st_size
    except (OSError, ValueError):
        return None
    if hashlib.sha256(body.encode()).hexdigest() != digest:
        return None
    index: dict[str, Any] = json.loads(body)
    whole = size == index["rows"] * index["front_end"]["n_mels"] * 2
    return index if whole and index["format"] == FORMAT else None


def _is_valid(folder: Path) -> bool:
    index = _read_index(folder)
    if index is None:
        return False
    crc = 0
    with (folder / "frames.f16").open("rb") as file:
        while block := file.read(1 << 24):
            crc = zlib.crc32(block, crc)
    return crc == int(index["crc32"])


def _evict(root: Path, limit_bytes: int, keep: set[Path]) -> None:
    """Remove caches beyond the limit, and partial folders of killed processes.

    None is touched that another process fills or removes: its lock is not free (`Timeout`).
    """
    for part in root.glob("*.part"):
        with contextlib.suppress(Timeout), FileLock(part.with_suffix(".lock"), timeout=0):
            shutil.rmtree(part, ignore_errors=True)
    caches = []  # time of last use, bytes, folder
    for index in root.glob("*/index.json"):
        with contextlib.suppress(FileNotFoundError):  # another process is removing it
            size = (index.parent / "frames.f16").stat().st_size
            caches.append((index.stat().st_mtime, size, index.parent))
    total = sum(size for _, size, _ in caches)
    for _, size, folder in sorted(caches):
        if total <= limit_bytes:
            return
        if folder in keep:
            continue
        with contextlib.suppress(Timeout), FileLock(folder.with_suffix(".lock"), timeout=0):
            if _is_unpinned(folder):
                shutil.rmtree(folder)
                total -= size


def _is_unpinned(folder: Path) -> bool:
    """Return False while any process pins the cache, or if it is gone."""
    try:
        with (folder / "index.json").open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, FileNotFoundError):
        return False
    return True
