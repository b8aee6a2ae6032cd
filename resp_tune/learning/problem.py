"""A problem to learn: recordings, the clips of a task and their sides, made into tensors."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from resp_tune.config import FrontEnd
from resp_tune.data.audio import load_waveform
from resp_tune.data.recordings import Dataset
from resp_tune.data.sides import Sides, clips_of
from resp_tune.data.tasks import Clips
from resp_tune.errors import UserError
from resp_tune.features.batches import ClipFrames
from resp_tune.features.frames import Frames
from resp_tune.features.store import Filled, Progress, Source, fill
from resp_tune.learning.training import Side, TrainingData
from resp_tune.paths import cache_folder, cache_limit_bytes


@dataclass(frozen=True)
class ClipTable:
    """Clips of a side as plain arrays `[clips]`, small enough to send to every trial.

    `recording` is an index into the recordings of a feature store; `start` and `end` are seconds.
    """

    recording: npt.NDArray[np.int64]
    start: npt.NDArray[np.float64]
    end: npt.NDArray[np.float64]
    label: npt.NDArray[np.int64]

    def side(self, frames: Frames, front_end: FrontEnd) -> Side:
        """These clips as rows of `frames`; a clip has at least one frame."""
        rate = front_end.sample_rate / front_end.hop_length
        recording = torch.from_numpy(self.recording)
        rows = frames.count[recording]
        first = torch.minimum(torch.from_numpy(self.start * rate).round().long(), rows - 1)
        last = torch.minimum(torch.from_numpy(self.end * rate).round().long() + 1, rows)
        count = (last - first).clamp(min=1)
        clips = ClipFrames(frames, frames.first[recording] + first, count)
        return Side(clips, torch.from_numpy(self.label))


@dataclass(frozen=True)
class FoldTables:
    """The clips of one inner fold."""

    train: ClipTable
    validation: ClipTable
    classes: tuple[str, ...]

    def tensors(self, frames: Frames, front_end: FrontEnd) -> TrainingData:
        """What a network is trained on, over the frames of one front end."""
        train, validation = (t.side(frames, front_end) for t in (self.train, self.validation))
        return TrainingData(train, validation, self.classes)


@dataclass(frozen=True)
class Problem:
    """A data set, the clips of a task and their sides."""

    dataset: Dataset
    clips: Clips
    sides: Sides

    @cached_property
    def search_stems(self) -> tuple[str, ...]:
        """Recordings that a search may look at: training and validation of every fold, sorted."""
        folds = self.sides.folds
        return tuple(sorted({s for fold in folds for s in (*fold.train, *fold.validation)}))

    def folds(self) -> tuple[FoldTables, ...]:
        """The inner folds, over the store of `search_stems`."""
        stems = self.search_stems
        return tuple(
            FoldTables(
                self.table(fold.train, stems),
                self.table(fold.validation, stems),
                self.sides.classes,
            )
            for fold in self.sides.folds
        )

    def table(self, stems: Iterable[str], store_stems: Sequence[str]) -> ClipTable:
        """The clips of recordings `stems`, over a store that holds `store_stems`."""
        row = {stem: i for i, stem in enumerate(store_stems)}
        recordings = self.dataset.recordings
        chosen = clips_of(self.dataset, self.clips, self.sides, stems)
        return ClipTable(
            np.array([row[recordings[c.recording].stem] for c in chosen], dtype=np.int64),
            np.array([c.start for c in chosen], dtype=np.float64),
            np.array([c.end for c in chosen], dtype=np.float64),
            np.array([c.label for c in chosen], dtype=np.int64),
        )

    def sources(self, stems: Sequence[str], workers: int) -> list[Source]:
        """The recordings `stems` for the feature store, each with a hash of its file."""
        paths = {r.stem: r.path for r in self.dataset.recordings}
        with ThreadPoolExecutor(workers) as pool:
            digests = list(pool.map(_file_digest, (paths[s] for s in stems)))
        return [
            Source(stem, digest, partial(load_waveform, paths[stem]))
            for stem, digest in zip(stems, digests, strict=True)
        ]


def fill_stores(
    problem: Problem,
    stems: Sequence[str],
    front_ends: Sequence[FrontEnd],
    *,
    workers: int,
    progress: Progress | None = None,
) -> Filled:
    """The feature stores of recordings `stems` in this machine's cache folder."""
    return fill(
        cache_folder() / "features",
        problem.sources(stems, workers),
        front_ends,
        limit_bytes=cache_limit_bytes(),
        workers=workers,
        progress=progress,
    )


def _file_digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(
            f"recording '{path}' cannot be read: {error.strerror}; put it back, or take its line "
            "out of the data set"
        ) from error
