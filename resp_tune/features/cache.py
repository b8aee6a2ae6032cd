"""The feature cache: frames on disk, computed once, memory-mapped by all trials of a node.

A cache is a folder `<cache folder>/features/<key>/` with `frames.f16` (float16, `[rows, n_mels]`)
and `index.json`; of an encoder `[rows, bands · channels]`, beside `centres.f32` (s, `[rows]`). Its
key is a hash of the recordings' bytes and the front end, with an encoder's bytes in place of its
path, so that a changed recording, setting or encoder has another cache. A folder appears by a
rename, complete or not at all.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from resp_tune.common.paths import cache_folder, full_disk_in_one_line
from resp_tune.config import AnyFrontEnd, EncoderFrontEnd, FrontEnd, Resampling
from resp_tune.encoders.encoder_file import Encoder, merge_encoders, open_encoder
from resp_tune.errors import RunError
from resp_tune.features.cache_files import (
    CENTRES,
    FORMAT,
    FRAMES,
    CacheWriter,
    FrameKind,
    frame_size,
    is_valid,
    read_index,
)
from resp_tune.features.encoder_frames import (
    EncoderFrames,
    encoder_identity,
    encoder_pass,
    expected_rows,
)
from resp_tune.features.logmel import Frames, log_mels, silence
from resp_tune.features.parallel import in_order, recording_pool

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


def cache_key(
    sources: Sequence[AudioSource], front_end: AnyFrontEnd, encoder: Encoder | None = None
) -> str:
    """Return 24 hex digits that change with the recordings' bytes and order, and the front end.

    `encoder` is that of an encoder's front end.
    """
    identity = _identity(front_end, encoder)
    content = [FORMAT, identity, [[s.stem, s.digest] for s in sources]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]


def _identity(front_end: AnyFrontEnd, encoder: Encoder | None) -> dict[str, Any]:
    if isinstance(front_end, FrontEnd):
        return asdict(front_end)
    if encoder is None:
        raise ValueError("the frames of an encoder need the encoder")
    return encoder_identity(front_end, encoder)


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
    process has filled or opened. `encoders` are those that the driver has opened, so that other
    processes need neither their paths nor, while caches are full, their libraries.
    """

    root: Path | None
    sources: tuple[AudioSource, ...]
    limit_bytes: int
    filled: frozenset[AnyFrontEnd] = frozenset()
    encoders: tuple[Encoder, ...] = ()

    def encoder(self, front_end: EncoderFrontEnd) -> Encoder:
        """Return the encoder of a front end, with its layer; may raise `UserError`."""
        for encoder in self.encoders:
            if encoder.given == front_end.encoder and front_end.layer in dict(encoder.kept):
                return encoder
        return open_encoder(front_end.encoder, (front_end.layer,))

    def folder(self, front_end: AnyFrontEnd) -> Path:
        """Return the folder of one front end's cache."""
        root = self.root or cache_folder() / "features"
        encoder = self.encoder(front_end) if isinstance(front_end, EncoderFrontEnd) else None
        return root / cache_key(self.sources, front_end, encoder)

    def is_there(self, front_end: AnyFrontEnd) -> bool:
        """Return whether a cache was filled before, unless it is damaged."""
        return (self.folder(front_end) / "index.json").exists()

    def expected_bytes(self, seconds: Iterable[float], front_end: AnyFrontEnd) -> int:
        """Return the size of the frames of recordings that last `seconds`, about."""
        if isinstance(front_end, FrontEnd):
            return expected_bytes(seconds, front_end)
        encoder = self.encoder(front_end)
        rows = sum(expected_rows(s, front_end, encoder) for s in seconds)
        values = rows * encoder.layer(front_end.layer).dim * np.dtype(np.float16).itemsize
        return values + rows * np.dtype(np.float32).itemsize

    def fill(
        self,
        front_ends: Sequence[AnyFrontEnd],
        *,
        workers: int = 1,
        progress: Progress | None = None,
    ) -> tuple[AnyFrontEnd, ...]:
        """Compute the caches of `front_ends` that are missing or damaged; return which these were.

        Front ends that share an STFT are computed in one pass, and all layers and speeds of an
        encoder are. `progress(done, total)` counts recordings over all passes; if it raises,
        filling stops and leaves no partial cache.
        """
        folders = {f: self.folder(f) for f in dict.fromkeys(front_ends)}
        root = next(iter(folders.values())).parent
        root.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as locks:
            # Always lock in the same order, or two searches could wait for each other.
            for folder in sorted(set(folders.values())):
                locks.enter_context(FileLock(folder.with_suffix(".lock")))
            missing = tuple(f for f, folder in folders.items() if not is_valid(folder))
            passes: dict[tuple[object, ...], dict[Path, AnyFrontEnd]] = {}
            # The name of an encoder's layer and its index have one folder.
            for folder, f in {folders[f]: f for f in missing}.items():
                passes.setdefault(self._shared_work(f), {})[folder] = f
            done, total = itertools.count(1), len(passes) * len(self.sources)

            def report() -> None:
                if progress is not None:
                    progress(next(done), total)

            for group in passes.values():
                self._compute_pass(group, workers, report)
            for folder in set(folders.values()):
                os.utime(folder / "index.json")
                _pin(folder)
        _evict(root, self.limit_bytes, keep=set(folders.values()))
        return missing

    def frames(self, front_end: FrontEnd, *, workers: int) -> Frames:
        """Return the frames of one front end; a process checks and opens each cache once."""
        return open_cache(self.filled_folders([front_end], workers=workers)[0])

    def filled_folders(self, front_ends: Sequence[AnyFrontEnd], *, workers: int) -> list[Path]:
        """Return the folders of front ends, after filling those that this process has not seen."""
        folders = [self.folder(f) for f in front_ends]
        pairs = zip(front_ends, folders, strict=True)
        unseen = [f for f, folder in pairs if f not in self.filled and folder not in _PINNED]
        if unseen:
            self.fill(unseen, workers=workers)
        return folders

    def _shared_work(self, front_end: AnyFrontEnd) -> tuple[object, ...]:
        """Return what the front ends that are computed in one pass have in common."""
        if isinstance(front_end, FrontEnd):
            stft = (front_end.sample_rate, front_end.n_fft, front_end.hop_length)
            return (*stft, front_end.resampling)
        return (replace(front_end, layer="", speed=1),)

    def _compute_pass(
        self, folders: Mapping[Path, AnyFrontEnd], workers: int, report: Callable[[], None]
    ) -> None:
        """Compute the caches of front ends that share work; call `report` after each recording."""
        front_ends = list(folders.values())
        compute = _mel_pass([f for f in front_ends if isinstance(f, FrontEnd)])
        if encoded := [f for f in front_ends if isinstance(f, EncoderFrontEnd)]:
            compute = self._encoder_pass(encoded)

        def one(source: AudioSource) -> list[Block]:
            with torch.inference_mode():
                return compute(source.load)

        # Outside the stack, because a file that could not be written fails again when it is closed.
        root = next(iter(folders)).parent
        with full_disk_in_one_line(root, ELSEWHERE), contextlib.ExitStack() as stack:
            writers = [CacheWriter(stack, folder, self._kind(f)) for folder, f in folders.items()]
            pool = stack.enter_context(recording_pool(workers))
            for blocks in in_order(pool, one, self.sources, ahead=4 * workers):
                for writer, block in zip(writers, blocks, strict=True):
                    writer.append(*block)
                report()
            for writer in writers:
                writer.finish()

    def _encoder_pass(self, front_ends: Sequence[EncoderFrontEnd]) -> Pass:
        opened = merge_encoders(map(self.encoder, front_ends))
        compute = encoder_pass(front_ends, opened)
        return lambda load: [(x.values, x.centre) for x in compute(load)]

    def _kind(self, front_end: AnyFrontEnd) -> FrameKind:
        """Return how the frames of a front end lie on disk."""
        if isinstance(front_end, FrontEnd):
            silent = np.full((1, front_end.n_mels), silence(front_end), np.float16)
            return FrameKind({"front_end": asdict(front_end)}, silent)
        encoder = self.encoder(front_end)
        about = {
            "dim": encoder.layer(front_end.layer).dim,
            "encoder": encoder_identity(front_end, encoder),
            "about": encoder.line,
        }
        return FrameKind(about, None)


Block = tuple[np.ndarray, np.ndarray | None]  # frames of a recording, and their centres
Pass = Callable[[Callable[[int, Resampling], torch.Tensor]], list[Block]]


def _mel_pass(front_ends: Sequence[FrontEnd]) -> Pass:
    """Return what computes the frames of a recording for front ends that share an STFT."""

    def frames(load: Callable[[int, Resampling], torch.Tensor]) -> list[Block]:
        waveform = load(front_ends[0].sample_rate, front_ends[0].resampling)
        mels = log_mels(waveform, front_ends)
        return [(m.to(torch.float16).numpy(), None) for m in mels]

    return frames


@cache
def open_cache(folder: Path) -> Frames:
    """Memory-map a cache of log-mel frames that is filled; processes share one copy in memory.

    A process maps a cache once, however many trials it runs.
    """
    values, count, _ = _mapped(folder)
    return Frames(values, count.cumsum(0) - count, count)


@cache
def open_encoder_cache(folder: Path) -> EncoderFrames:
    """Memory-map a cache of an encoder's frames that is filled, as `open_cache` does."""
    values, count, index = _mapped(folder)
    centre = torch.from_file(
        str(folder / CENTRES), shared=False, size=index["rows"], dtype=torch.float32
    )
    return EncoderFrames(values, count.cumsum(0) - count, count, centre)


def _mapped(folder: Path) -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    """Return the frames of a cache, `[rows, dim]`, the frames of each recording, and its index."""
    index = read_index(folder)
    if index is None:
        raise RunError(f"feature cache {folder} is not readable: rerun the same command")
    _pin(folder)
    rows, dim = index["rows"], frame_size(index)
    values = torch.from_file(
        str(folder / FRAMES), shared=False, size=rows * dim, dtype=torch.float16
    ).view(rows, dim)
    return values, torch.tensor(index["count"], dtype=torch.int64), index


_PINNED: dict[Path, IO[bytes]] = {}  # that this process has filled or opened


def _pin(folder: Path) -> None:
    """Protect a cache from eviction until this process ends, by a shared lock.

    The process that fills it pins it too, as readers may come much later: Ray has to start.
    """
    handle = (folder / "index.json").open("rb")
    fcntl.flock(handle, fcntl.LOCK_SH)
    _PINNED[folder] = handle


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
            size = (index.parent / FRAMES).stat().st_size
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
