"""Find the files of a data set in a folder and the folders below it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

MAX_DEPTH = 6
AUDIO_SUFFIXES = (".wav", ".flac")
OTHER_AUDIO_SUFFIXES = (".mp3", ".ogg", ".m4a", ".aac", ".aif", ".aiff", ".wma", ".opus")
SYNTHETIC_NAME = "SYNTHETIC.txt"
TABLES = {  # names of the files of a field of `Layout`, in any case
    "diagnoses": ("patient_diagnosis.csv", "ICBHI_Challenge_diagnosis.txt"),
    "demographics": ("demographic_info.txt", "ICBHI_Challenge_demographic_information.txt"),
    "official": ("ICBHI_challenge_train_test.txt",),
    "synthetic": (SYNTHETIC_NAME,),
}

_STEM = re.compile(
    r"([A-Za-z0-9]+)_([A-Za-z0-9]+)_([A-Za-z0-9]+)_([A-Za-z0-9]+)_([A-Za-z0-9-]+)", re.ASCII
)


class Name(NamedTuple):
    """The five parts of `<patient>_<recording index>_<location>_<mode>_<device>`."""

    patient: str
    recording_index: str
    location: str
    mode: str
    device: str


@dataclass
class Layout:
    """The files of a data set, each group sorted by depth, then path.

    `annotations` are text files named like a recording; `odd` are audio files that cannot be
    recordings, because of their format or name; `synthetic` holds the mark of a generated set.
    """

    audio: list[Path] = field(default_factory=list)
    annotations: list[Path] = field(default_factory=list)
    diagnoses: list[Path] = field(default_factory=list)
    demographics: list[Path] = field(default_factory=list)
    official: list[Path] = field(default_factory=list)
    odd: list[Path] = field(default_factory=list)
    synthetic: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def parse_stem(stem: str) -> Name | None:
    """Return the parts of a file name without its suffix; None if it does not match."""
    match = _STEM.fullmatch(stem)
    return Name(*match.groups()) if match else None


def find_layout(root: Path) -> Layout:
    """Find a data set's files in `root` and up to `MAX_DEPTH` folders below it.

    Hidden files and folders and macOS' `__MACOSX` are skipped. Links are followed, because audio is
    often kept elsewhere; a folder that is reached twice is read once.
    """
    layout = Layout()
    for path in _files(root, layout.problems):
        if kind := _kind(path):
            getattr(layout, kind).append(path)
    return layout


def find_diagnoses(folder: Path) -> Path | None:
    """Return a table of diagnoses in `folder` itself."""
    return next((path for path in sorted(folder.glob("*")) if _kind(path) == "diagnoses"), None)


def _kind(path: Path) -> str | None:
    """Return the field of `Layout` to which a file belongs."""
    suffix = path.suffix.lower()
    named = parse_stem(path.stem) is not None
    for kind, names in TABLES.items():
        if path.name.lower() in map(str.lower, names):
            return kind
    if suffix in AUDIO_SUFFIXES:
        return "audio" if named else "odd"
    if suffix in OTHER_AUDIO_SUFFIXES:
        return "odd"
    return "annotations" if suffix == ".txt" and named else None


def _files(root: Path, problems: list[str]) -> Iterator[Path]:
    """Yield files breadth first, so that of two copies the less deep one comes first."""
    seen: set[tuple[int, int]] = set()
    level = [root]
    for _ in range(MAX_DEPTH + 1):
        below: list[Path] = []
        for folder in level:
            try:
                status = folder.stat()
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except OSError as error:
                problems.append(f"'{folder}' cannot be opened: {error.strerror}; it is skipped")
                continue
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            for entry in entries:
                if entry.name.startswith(".") or entry.name == "__MACOSX":
                    continue
                # Unlike Path's, it is False for a link into a forbidden folder; opening that fails.
                if os.path.isdir(entry):  # noqa: PTH112
                    below.append(Path(entry.path))
                else:
                    yield Path(entry.path)
        level = below
