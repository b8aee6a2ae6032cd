"""Find the files of a data set in a folder and the folders below it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MAX_DEPTH = 6
AUDIO_SUFFIXES = (".wav", ".flac")
OTHER_AUDIO_SUFFIXES = (".mp3", ".ogg", ".m4a", ".aac", ".aif", ".aiff", ".wma", ".opus")
DIAGNOSIS_NAMES = ("patient_diagnosis.csv", "ICBHI_Challenge_diagnosis.txt")
DEMOGRAPHIC_NAMES = ("demographic_info.txt", "ICBHI_Challenge_demographic_information.txt")
OFFICIAL_NAMES = ("ICBHI_challenge_train_test.txt",)
SYNTHETIC_NAME = "SYNTHETIC.txt"

_STEM = re.compile(
    r"([A-Za-z0-9]+)_([A-Za-z0-9]+)_([A-Za-z0-9]+)_([A-Za-z0-9]+)_([A-Za-z0-9-]+)", re.ASCII
)


@dataclass(frozen=True)
class Name:
    """The five parts of `<patient>_<recording index>_<location>_<mode>_<device>`."""

    patient: str
    index: str
    location: str
    mode: str
    device: str

    @property
    def without_device(self) -> tuple[str, str, str, str]:
        """Return the parts that identify a recording in the official split."""
        return self.patient, self.index, self.location, self.mode


@dataclass(frozen=True)
class Layout:
    """The files of a data set, each group sorted by depth, then path.

    `annotations` are text files named like a recording; `odd` are audio files that cannot be
    recordings, because of their format or name.
    """

    audio: tuple[Path, ...]
    annotations: tuple[Path, ...]
    diagnoses: tuple[Path, ...]
    demographics: tuple[Path, ...]
    official: tuple[Path, ...]
    odd: tuple[Path, ...]
    synthetic: bool
    problems: tuple[str, ...]


def parse_stem(stem: str) -> Name | None:
    """Return the parts of a file name without its suffix; None if it does not match."""
    match = _STEM.fullmatch(stem)
    return Name(*match.groups()) if match else None


def find_layout(root: Path) -> Layout:
    """Find a data set's files in `root` and up to `MAX_DEPTH` folders below it.

    Hidden files and folders and macOS' `__MACOSX` are skipped. Links are followed, because audio is
    often kept elsewhere; a folder that is reached twice is read once.
    """
    problems: list[str] = []
    groups: dict[str, list[Path]] = {}
    for path in _files(root, problems):
        groups.setdefault(_kind(path), []).append(path)
    return Layout(
        audio=tuple(groups.get("audio", ())),
        annotations=tuple(groups.get("annotation", ())),
        diagnoses=tuple(groups.get("diagnosis", ())),
        demographics=tuple(groups.get("demographic", ())),
        official=tuple(groups.get("official", ())),
        odd=tuple(groups.get("odd", ())),
        synthetic="synthetic" in groups,
        problems=tuple(problems),
    )


def find_diagnoses(folder: Path) -> Path | None:
    """Return a table of diagnoses in `folder` itself."""
    return next((path for path in sorted(folder.glob("*")) if _kind(path) == "diagnosis"), None)


_TABLES = {
    **{name.lower(): "diagnosis" for name in DIAGNOSIS_NAMES},
    **{name.lower(): "demographic" for name in DEMOGRAPHIC_NAMES},
    **{name.lower(): "official" for name in OFFICIAL_NAMES},
    SYNTHETIC_NAME.lower(): "synthetic",
}


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    named = parse_stem(path.stem) is not None
    if path.name.lower() in _TABLES:
        return _TABLES[path.name.lower()]
    if suffix in AUDIO_SUFFIXES:
        return "audio" if named else "odd"
    if suffix in OTHER_AUDIO_SUFFIXES:
        return "odd"
    return "annotation" if suffix == ".txt" and named else "other"


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
                path = Path(entry.path)
                if _is_folder(path):
                    below.append(path)
                else:
                    yield path
        level = below


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False  # a link into a forbidden folder; opening it reports that
