"""Turn recordings, the clips of a task and their split into tensors for training.

The recordings that a search uses are hashed, to notice and name one that has changed since.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

from resp_tune.common.fault_points import fault_point
from resp_tune.common.paths import cache_limit_bytes, write_atomically
from resp_tune.common.text import join_names
from resp_tune.config import FrontEnd, Resampling, TrialConfig
from resp_tune.data.dataset import Dataset, Recording
from resp_tune.data.make_split import Rows, make_split, reshuffled_folds
from resp_tune.data.sounds.audio_files import AudioError
from resp_tune.data.sounds.waveforms import load_waveform
from resp_tune.data.split import Split
from resp_tune.data.split_spec import SplitSpec
from resp_tune.data.tasks import Clips, Task, make_clips
from resp_tune.errors import RunError, UserError
from resp_tune.features.batches import cut_clips
from resp_tune.features.cache import AudioSource, FeatureCaches
from resp_tune.features.logmel import Frames
from resp_tune.features.pooled_clips import pooled_clips
from resp_tune.training.fold_training import SplitTensors, TrainingData
from resp_tune.training.metrics import Probabilities

if TYPE_CHECKING:
    import pandas as pd

HASHES_FILE = "recordings.json"  # in a search's folder: its training and validation recordings
TEST_HASHES_FILE = "test_recordings.json"  # its test recordings at the first test-set access
NAMED = 5  # of each kind of change; a moved data set has hundreds

RecordingHashes = Mapping[str, Sequence[str]]  # hashes of the audio and of its labels, by stem


@dataclass(frozen=True)
class ClipLabels:
    """Clips of a split as plain arrays `[clips]`, small enough to send to every trial.

    `cache_index` is the position of a clip's recording in the feature cache; `start` and `end` are
    seconds; `stem`, `session`, `patient` and `device` are text.
    """

    cache_index: npt.NDArray[np.int64]
    start: npt.NDArray[np.float64]
    end: npt.NDArray[np.float64]
    label: npt.NDArray[np.int64]
    stem: npt.NDArray[np.str_]
    session: npt.NDArray[np.str_]
    patient: npt.NDArray[np.str_]
    device: npt.NDArray[np.str_]

    def of(self, stems: Collection[str]) -> ClipLabels:
        """Return the clips of the recordings `stems`."""
        own = np.isin(self.stem, list(stems))
        return ClipLabels(*(getattr(self, field.name)[own] for field in fields(ClipLabels)))

    def load(self, caches: FeatureCaches, config: TrialConfig, *, workers: int) -> SplitTensors:
        """Return what a network of `config` is trained on, after filling missing caches."""
        if not config.has_encoder:
            return self.tensors(caches.frames(config.front_end, workers=workers), config.front_end)
        clips = pooled_clips(caches, config, self._places(), workers=workers)
        return SplitTensors(clips, torch.from_numpy(self.label), self.groups())

    def tensors(self, frames: Frames, front_end: FrontEnd) -> SplitTensors:
        """Return the clips as rows of `frames`; a clip has at least one frame."""
        clips = cut_clips(frames, front_end, *self._places())
        return SplitTensors(clips, torch.from_numpy(self.label), self.groups())

    def _places(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the index of each clip's recording in the cache, its start and its end in s."""
        index, start, end = map(torch.from_numpy, (self.cache_index, self.start, self.end))
        return index, start, end

    def groups(self) -> dict[str, npt.NDArray[np.int64]]:
        """Return the number of each clip's session and patient, by level."""
        names = {"session": self.session, "patient": self.patient}
        return {level: np.unique(own, return_inverse=True)[1] for level, own in names.items()}


@dataclass(frozen=True)
class FoldTables:
    """The clips of one inner fold."""

    train: ClipLabels
    validation: ClipLabels
    classes: tuple[str, ...]

    def load(self, caches: FeatureCaches, config: TrialConfig, *, workers: int) -> TrainingData:
        """Return what a network of `config` is trained on, after filling missing caches."""
        splits = (self.train, self.validation)
        train, validation = (split.load(caches, config, workers=workers) for split in splits)
        return TrainingData(train, validation, self.classes)

    def tensors(self, frames: Frames, front_end: FrontEnd) -> TrainingData:
        """Return what a network is trained on, as rows of the frames of one front end."""
        train, validation = (t.tensors(frames, front_end) for t in (self.train, self.validation))
        return TrainingData(train, validation, self.classes)


@dataclass(frozen=True)
class Reshuffle:
    """Draws the inner folds of each trial from all clips that a search may use, `[clips]`.

    `persons` are those of `clips`; `folds` is the number of folds.
    """

    clips: ClipLabels
    persons: npt.NDArray[np.str_]
    classes: tuple[str, ...]
    folds: int
    split_seed: int

    def folds_of(self, trial: int) -> tuple[FoldTables, ...]:
        """Return the folds of trial number `trial`, the same each time."""
        rows = Rows(self.clips.stem, self.persons, self.clips.label)
        return tuple(
            FoldTables(self.clips.of(f.train), self.clips.of(f.validation), self.classes)
            for f in reshuffled_folds(rows, self.folds, self.split_seed, trial)
        )


@dataclass(frozen=True)
class DataModule:
    """A data set, the clips of a task and their split.

    With `shared_caches` the feature caches hold all recordings of the split, those of the test
    split too, so that the searches of several outer folds share them.
    """

    dataset: Dataset
    clips: Clips
    split: Split
    shared_caches: bool = False

    @cached_property
    def search_stems(self) -> tuple[str, ...]:
        """Return the recordings that a search may use, sorted: all but those of the test split."""
        folds = self.split.folds
        return tuple(sorted({s for fold in folds for s in (*fold.train, *fold.validation)}))

    @cached_property
    def cached_stems(self) -> tuple[str, ...]:
        """Return the recordings of the feature caches of a search, sorted."""
        return tuple(sorted(self.split.stems)) if self.shared_caches else self.search_stems

    def folds(self) -> tuple[FoldTables, ...]:
        """Return the inner folds, over the feature cache of `cached_stems`."""
        labels, folds = partial(self.clip_labels, cached_stems=self.cached_stems), self.split.folds
        return tuple(
            FoldTables(labels(f.train), labels(f.validation), self.split.classes) for f in folds
        )

    def reshuffle(self) -> Reshuffle:
        """Return what draws the inner folds of each trial."""
        clips = self.clip_labels(self.search_stems, self.cached_stems)
        person_of = {r.stem: r.person for r in self.dataset.recordings}
        persons = np.array([person_of[stem] for stem in clips.stem.tolist()], dtype=np.str_)
        split = self.split
        return Reshuffle(clips, persons, split.classes, len(split.folds), split.split_seed)

    def clip_labels(self, stems: Iterable[str], cached_stems: Sequence[str]) -> ClipLabels:
        """Return the clips of recordings `stems`, over a feature cache of `cached_stems`."""
        index = {stem: i for i, stem in enumerate(cached_stems)}
        chosen = self.split.select_clips(self.clips, stems)
        return ClipLabels(
            np.array([index[c.recording.stem] for c in chosen], dtype=np.int64),
            np.array([c.start for c in chosen], dtype=np.float64),
            np.array([c.end for c in chosen], dtype=np.float64),
            np.array([c.label for c in chosen], dtype=np.int64),
            np.array([c.recording.stem for c in chosen], dtype=np.str_),
            np.array([c.recording.session for c in chosen], dtype=np.str_),
            np.array([c.recording.patient for c in chosen], dtype=np.str_),
            np.array([c.recording.device for c in chosen], dtype=np.str_),
        )

    def audio_sources(self, stems: Sequence[str], workers: int) -> list[AudioSource]:
        """Return the recordings `stems` for the feature cache, each with a hash of its file."""
        by_stem = {r.stem: r for r in self.dataset.recordings}
        return audio_sources([by_stem[stem] for stem in stems], workers)


def audio_sources(recordings: Sequence[Recording], workers: int) -> list[AudioSource]:
    """Return `recordings` for the feature cache, each with a hash of its file."""
    with ThreadPoolExecutor(workers) as pool:
        digests = list(pool.map(_file_digest, (r.path for r in recordings)))
    return [
        AudioSource(r.stem, digest, partial(load_unchanged, r.path, digest))
        for r, digest in zip(recordings, digests, strict=True)
    ]


def make_datamodule(dataset: Dataset, task: Task, spec: SplitSpec) -> DataModule:
    """Return the clips of `task` in `dataset`, and their split."""
    clips = make_clips(task, dataset)
    split = make_split(dataset, clips, spec)
    return DataModule(dataset, clips, split, shared_caches=spec.outer_folds > 1)


def make_feature_caches(
    datamodule: DataModule, stems: Sequence[str], workers: int
) -> FeatureCaches:
    """Hash the recordings `stems` and return their feature caches, none of them filled yet."""
    sources = tuple(datamodule.audio_sources(stems, workers))
    return FeatureCaches(None, sources, cache_limit_bytes())


def prediction_table(
    split: str, clips: ClipLabels, classes: Sequence[str], probabilities: Probabilities
) -> pd.DataFrame:
    """Return a row a clip: side, recording, start, patient, device, label, predicted, p_<class>.

    `side` is the name of the split, `start` is in seconds. `probabilities` `[clips, classes]` are
    kept to the last bit, so that metrics of the table are metrics of the network.
    """
    import pandas as pd

    names = np.array(classes)
    return pd.DataFrame(
        {
            "side": split,
            "recording": clips.stem,
            "start": clips.start.round(6),
            "patient": clips.patient,
            "device": clips.device,
            "label": names[clips.label],
            "predicted": names[probabilities.argmax(1)],
            **{f"p_{c}": probabilities[:, i] for i, c in enumerate(classes)},
        }
    )


def load_unchanged(
    path: Path, digest: str, sample_rate: int, resampling: Resampling
) -> torch.Tensor:
    """Load a waveform; raises `RunError` if the file no longer has the SHA-256 `digest`."""
    try:
        waveform = load_waveform(path, sample_rate, resampling)
        fault_point("waveform-read", path.stem)
    except AudioError:
        if path.exists() and _file_digest(path) == digest:
            raise
        waveform = None
    # Hashed after decoding, to notice a change in between as well.
    if waveform is None or not path.exists() or _file_digest(path) != digest:
        what = "has changed" if path.exists() else "is gone"
        raise RunError(
            f"recording '{path}' {what} since this command began: restore it and rerun the "
            "command, or give the search another --name"
        )
    return waveform


def _file_digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(
            f"recording '{path}' cannot be read: {error.strerror}; restore it, or remove it "
            "from the data set"
        ) from error


def data_digest(datamodule: DataModule, sources: Sequence[AudioSource]) -> str:
    """Return one hash of all recordings in `sources`: names, bytes and labelled clips."""
    named = [[s.stem, s.digest] for s in sources]
    searched = {s.stem for s in sources}
    clips = [[stem, *clip] for stem, clip in _clips(datamodule) if stem in searched]
    return _hash([named, clips])


def recording_hashes(datamodule: DataModule, sources: Sequence[AudioSource]) -> RecordingHashes:
    """Return the hashes of each recording's audio and labels, by stem."""
    clips: dict[str, list[object]] = {s.stem: [] for s in sources}
    for stem, clip in _clips(datamodule):
        if stem in clips:
            clips[stem].append(clip)
    return {s.stem: (s.digest, _hash(clips[s.stem])) for s in sources}


def save_recording_hashes(folder: Path, now: RecordingHashes, file: str = HASHES_FILE) -> None:
    """Save the hashes in the search's folder, unless they are there already."""
    if _load(folder / file) is None:
        write_atomically(folder / file, (json.dumps(now, indent=1) + "\n").encode())


def changed_recordings(folder: Path, now: RecordingHashes, file: str = HASHES_FILE) -> str | None:
    """Return which recordings differ from the saved hashes, None if none is known to."""
    before = _load(folder / file)
    if before is None:
        return None
    both = before.keys() & now.keys()
    kinds = {
        "gone": before.keys() - now.keys(),
        "new": now.keys() - before.keys(),
        "not the same audio": {s for s in both if before[s][0] != now[s][0]},
        "not the same labels": {s for s in both if before[s][1] != now[s][1]},
    }
    named = (f"{kind}: {join_names(sorted(s), NAMED)}" for kind, s in kinds.items() if s)
    return "; ".join(named) or None


def _clips(datamodule: DataModule) -> list[tuple[str, tuple[float, float, int]]]:
    return [(c.recording.stem, (c.start, c.end, c.label)) for c in datamodule.clips.clips]


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _load(path: Path) -> RecordingHashes | None:
    """Return the saved hashes, None if unreadable: the study has a hash of all recordings."""
    with suppress(OSError, ValueError, TypeError, RecursionError):
        kept = json.loads(path.read_bytes())
        return {str(stem): (str(audio), str(labels)) for stem, (audio, labels) in kept.items()}
    return None
