"""Read all recordings of a data set: what they are, what is wrong, and which are copies.

The result is kept in the cache folder under a hash of the files' content, so that a later command
only hashes the files.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from threadpoolctl import threadpool_limits

from resp_tune.common.paths import cache_folder, write_atomically
from resp_tune.common.text import join_names, plural
from resp_tune.data.sounds.audio_files import AudioError, Remark, read_content, remark_lines
from resp_tune.data.sounds.same_sound import Envelope, NearCopies, envelope, find_near_copies
from resp_tune.data.sounds.waveforms import find_sound
from resp_tune.errors import RespTuneError, UserError

log = logging.getLogger(__name__)

Key = TypeVar("Key")
Value = TypeVar("Value")
FORMAT = 3  # changes with what is found in a file
_ANNOUNCED = 200e6  # bytes, from which reading takes seconds


@dataclass(frozen=True)
class AudioFacts:
    """What is known of a usable file. `sound` is the SHA-256 of the samples that are used."""

    sound: str
    sample_rate: int
    channels: int
    samples: int
    remarks: tuple[Remark, ...]

    @property
    def seconds(self) -> float:
        """Return the length in seconds."""
        return self.samples / self.sample_rate


@dataclass(frozen=True)
class Inspection:
    """The usable files, and a line for each kind of problem.

    `digests` are SHA-256 of the files; `near_copies` are pairs of sounds, by `AudioFacts.sound`.
    """

    files: Mapping[Path, AudioFacts]
    digests: Mapping[Path, str]
    near_copies: NearCopies
    problems: tuple[str, ...]


def inspect_recordings(patients: Mapping[Path, str], *, keep: bool = True) -> Inspection:
    """Read the files in `patients`, which names the patient of each, and compare their sounds.

    Without `keep`, nothing is written to the cache folder.
    """
    digests = _in_threads(8, _digest, patients)  # many, because network folders answer slowly
    path_of: dict[str, Path] = {}
    for path, digest in digests.items():
        if not isinstance(digest, AudioError):
            path_of.setdefault(digest, path)
    content = [FORMAT, sorted((digest, patients[path]) for digest, path in path_of.items())]
    cached = cache_folder() / "sounds" / f"{_sha256(json.dumps(content).encode())[:24]}.json"
    found = _load(cached)
    if found is None or found.files.keys() != path_of.keys():
        found = _inspect(path_of, patients)
        # A folder that cannot be written costs time only.
        with suppress(OSError, RespTuneError):
            if keep:
                cached.parent.mkdir(parents=True, exist_ok=True)
                write_atomically(cached, json.dumps(asdict(found)).encode())
    files: dict[Path, AudioFacts] = {}
    errors: list[AudioError] = []
    for path, digest in digests.items():
        facts = digest if isinstance(digest, AudioError) else found.files[digest]
        if isinstance(facts, AudioFacts):
            files[path] = facts
        else:
            errors.append(AudioError(path, facts) if isinstance(facts, str) else facts)
    remarks = remark_lines({path: facts.remarks for path, facts in files.items()})
    problems = (*_left_out_lines(errors), *remarks, *found.near_copies.notes)
    return Inspection(files, {p: str(digests[p]) for p in files}, found.near_copies, problems)


@dataclass(frozen=True)
class _Found:
    """What the cache folder keeps: by the digest of a file, its facts or why it is left out."""

    files: Mapping[str, AudioFacts | str]
    near_copies: NearCopies


def _inspect(path_of: Mapping[str, Path], patients: Mapping[Path, str]) -> _Found:
    size = sum(path.stat().st_size for path in path_of.values())
    if size > _ANNOUNCED:
        log.info(f"data: reading {len(path_of)} recordings ({size / 1e6:.0f} MB) to compare them")
    # BLAS's own threads would spin beside these, over matrices this small.
    with threadpool_limits(limits=1, user_api="blas"):
        return _read_and_compare(path_of, patients)


def _read_and_compare(path_of: Mapping[str, Path], patients: Mapping[Path, str]) -> _Found:
    read = _in_threads(len(os.sched_getaffinity(0)), lambda d: _read(d, path_of[d]), path_of)
    sounds: dict[str, Envelope] = {}
    owners: dict[str, str] = {}
    for digest, (facts, shape) in read.items():
        if isinstance(facts, AudioFacts) and shape is not None:
            sounds[facts.sound] = shape
            owners[facts.sound] = patients[path_of[digest]]
    files = {digest: facts for digest, (facts, _) in read.items()}
    return _Found(files, find_near_copies(sounds, owners))


def _read(digest: str, path: Path) -> tuple[AudioFacts | str, Envelope | None]:
    """Return the facts and envelopes of a file, or why it is left out."""
    try:
        content = read_content(path)
        if _sha256(content) != digest:
            raise UserError(f"'{path}' was changed while it was read: rerun the command")
        sound = find_sound(path, content)
    except AudioError as error:
        return error.defect, None
    samples = sound.samples + 0.0  # makes -0 and 0 the same bytes
    facts = AudioFacts(
        _sha256(samples.tobytes()), sound.sample_rate, sound.channels, len(samples), sound.remarks
    )
    return facts, envelope(samples, sound.sample_rate)


def _in_threads(
    workers: int, call: Callable[[Key], Value], keys: Iterable[Key]
) -> dict[Key, Value]:
    keys = list(keys)
    with ThreadPoolExecutor(workers) as pool:
        return dict(zip(keys, pool.map(call, keys), strict=True))


def _digest(path: Path) -> str | AudioError:
    try:
        return _sha256(read_content(path))
    except AudioError as error:
        return error


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _load(path: Path) -> _Found | None:
    """Return what was kept, None if there is nothing or it is damaged."""
    with suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        kept = json.loads(path.read_bytes())
        files = {digest: _facts(values) for digest, values in kept["files"].items()}
        return _Found(files, NearCopies.from_dict(kept["near_copies"]))
    return None


def _facts(values: dict[str, Any] | str) -> AudioFacts | str:
    if isinstance(values, str):
        return values
    remarks = tuple(Remark(str(kind), str(detail)) for kind, detail in values["remarks"])
    return AudioFacts(**{**values, "remarks": remarks})


def _left_out_lines(errors: Iterable[AudioError]) -> list[str]:
    """Describe the files that are left out, in a line for each kind of reason."""
    by_kind: dict[str, list[AudioError]] = {}
    for error in errors:
        by_kind.setdefault(re.sub(r"[\d.]+", "", error.defect), []).append(error)
    lines = []
    for first, *others in by_kind.values():
        also = "; it is left out"
        if others:
            names = join_names([f"'{Path(error.path).name}'" for error in others])
            also = f"; it is left out, and {plural(len(others), 'more file')} for a like reason"
            also += f": {names}"
        lines.append(f"{first}{also}")
    return lines
