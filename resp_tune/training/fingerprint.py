"""Which recordings a search was begun with: to notice one that has changed since, and name it."""

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

KEPT = "recordings.json"  # in a search's folder: what it trains and validates on
TEST_KEPT = "test_recordings.json"  # what its test side was when that was first read
NAMED = 5  # of a kind; a moved data set has hundreds

Contents = Mapping[str, Sequence[str]]  # hashes of the audio and of its labels, by stem


def data_digest(datamodule: DataModule, sources: Sequence[AudioSource]) -> str:
    """A hash of every recording that the search reads: names, bytes, and labelled clips."""
    named = [[s.stem, s.digest] for s in sources]
    searched = {s.stem for s in sources}
    clips = [[stem, *clip] for stem, clip in _clips(datamodule) if stem in searched]
    return _hash([named, clips])


def recording_hashes(datamodule: DataModule, sources: Sequence[AudioSource]) -> Contents:
    """The same by recording, so that a difference can be named."""
    clips: dict[str, list[object]] = {s.stem: [] for s in sources}
    for stem, clip in _clips(datamodule):
        if stem in clips:
            clips[stem].append(clip)
    return {s.stem: (s.digest, _hash(clips[s.stem])) for s in sources}


def save_recording_hashes(folder: Path, now: Contents, kept: str = KEPT) -> None:
    """Keep them in the search's folder, unless they are there."""
    if _load(folder / kept) is None:
        write_atomically(folder / kept, (json.dumps(now, indent=1) + "\n").encode())


def changed_recordings(folder: Path, now: Contents, kept: str = KEPT) -> str | None:
    """What differs from what was kept first; None where nothing does, or that is not known."""
    before = _load(folder / kept)
    if before is None:
        return None
    both = before.keys() & now.keys()
    kinds = {
        "gone": before.keys() - now.keys(),
        "new": now.keys() - before.keys(),
        "not the same audio": {s for s in both if before[s][0] != now[s][0]},
        "not the same labels": {s for s in both if before[s][1] != now[s][1]},
    }
    return (
        "; ".join(
            f"{kind}: {join_names(sorted(stems), NAMED)}" for kind, stems in kinds.items() if stems
        )
        or None
    )


def _clips(datamodule: DataModule) -> list[tuple[str, tuple[float, float, int]]]:
    return [(c.recording.stem, (c.start, c.end, c.label)) for c in datamodule.clips.clips]


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _load(path: Path) -> Contents | None:
    """None where there is none that can be read: the study has a hash of all of it."""
    with suppress(OSError, ValueError, TypeError, RecursionError):
        kept = json.loads(path.read_bytes())
        return {str(stem): (str(audio), str(labels)) for stem, (audio, labels) in kept.items()}
    return None
