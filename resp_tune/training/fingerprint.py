"""Hash the recordings that a search uses, to notice and name one that has changed since."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from resp_tune.common.paths import write_atomically
from resp_tune.common.text import join_names
from resp_tune.features.cache import AudioSource
from resp_tune.training.datamodule import DataModule

HASHES_FILE = "recordings.json"  # in a search's folder: its training and validation recordings
TEST_HASHES_FILE = "test_recordings.json"  # its test recordings at the first test-set access
NAMED = 5  # of each kind of change; a moved data set has hundreds

RecordingHashes = Mapping[str, Sequence[str]]  # hashes of the audio and of its labels, by stem


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
