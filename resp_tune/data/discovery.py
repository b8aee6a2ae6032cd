"""Find the files of a data set in a folder and the folders below it."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from resp_tune.common.text import join_names

MAX_DEPTH = 6
AUDIO_SUFFIXES = (".wav", ".flac")
OTHER_AUDIO_SUFFIXES = (
    ".mp3", ".ogg", ".oga", ".opus", ".m4a", ".mp4", ".aac", ".aif", ".aiff", ".aifc", ".wma",
    ".wave", ".w64", ".au", ".caf", ".amr", ".3gp", ".webm",
)  # fmt: skip
SYNTHETIC_NAME = "SYNTHETIC.txt"
TABLES = {  # names of the files of a field of `Layout`, in any case and with any of the suffixes
    "diagnoses": ("patient_diagnosis", "ICBHI_Challenge_diagnosis"),
    "demographics": ("demographic_info", "ICBHI_Challenge_demographic_information", "metadata"),
    "official": ("ICBHI_challenge_train_test", "official_split"),
    "folds": ("patient_list_foldwise",),
}
TABLE_SUFFIXES = (".csv", ".txt", ".tsv")
OTHER_TABLE_SUFFIXES = (".xlsx", ".xls", ".xlsm", ".xlsb", ".ods", ".numbers")

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

    `annotations` are text files named like a recording; `folds` are other programs' lists of folds;
    `unread` are other tables and texts; `odd` are audio files that cannot be recordings, because of
    their format or name; `synthetic` holds the mark of a generated set.
    """

    audio: list[Path] = field(default_factory=list)
    annotations: list[Path] = field(default_factory=list)
    diagnoses: list[Path] = field(default_factory=list)
    demographics: list[Path] = field(default_factory=list)
    official: list[Path] = field(default_factory=list)
    folds: list[Path] = field(default_factory=list)
    unread: list[Path] = field(default_factory=list)
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


def find_annotation(audio: Path) -> Path | None:
    """Return the annotation file beside a recording: the same name with `.txt`, in any case."""
    try:
        beside = sorted(audio.parent.iterdir())
    except OSError:
        return None
    suffixed = (path for path in beside if path.suffix.lower() == ".txt")
    return next((path for path in suffixed if path.stem == audio.stem), None)


def unread_tables(layout: Layout) -> str | None:
    """Return a line that names the tables and texts which are not read, near misses first."""
    hints = {path: hint for path in layout.unread if (hint := _hint(path.name))}
    others = [path.name for path in layout.unread if path not in hints]
    names = [*(f"{path.name} ({hint})" for path, hint in hints.items()), *others]
    return f"not read: {join_names(names)}" if names else None


def _hint(name: str) -> str | None:
    """Return how to rename a file whose name is close to that of a table."""
    suffixes = (*TABLE_SUFFIXES, *OTHER_TABLE_SUFFIXES)
    stem = name.lower()
    while stem.endswith(suffixes):
        stem = stem[: stem.rindex(".")]
    letters = re.sub(r"[^a-z]", "", stem)
    known = {re.sub(r"[^a-z]", "", n.lower()): n for group in TABLES.values() for n in group}
    near = difflib.get_close_matches(letters, known, n=1, cutoff=0.75)
    parts = [k for k in known if len(letters) > 5 and (letters in k or k in letters)]
    if not near and not parts:
        return None
    target = f"{known[(near or parts)[0]]}.csv"
    is_text = Path(name).suffix.lower() in ("", *TABLE_SUFFIXES)
    return f"to use it, {'rename it to' if is_text else 'save it as'} {target}"


def _kind(path: Path) -> str | None:
    """Return the field of `Layout` to which a file belongs."""
    suffix, stem = path.suffix.lower(), path.stem.lower()
    named = parse_stem(path.stem) is not None
    if path.name.lower() == SYNTHETIC_NAME.lower():
        return "synthetic"
    for kind, names in TABLES.items():
        if suffix in TABLE_SUFFIXES and stem in map(str.lower, names):
            return kind
    if suffix in AUDIO_SUFFIXES:
        return "audio" if named else "odd"
    if suffix in OTHER_AUDIO_SUFFIXES:
        return "odd"
    if suffix == ".txt" and named:
        return "annotations"
    is_table = suffix in (*TABLE_SUFFIXES, *OTHER_TABLE_SUFFIXES)
    is_unread = stem not in ("readme", "license") and (is_table or _hint(path.name))
    return "unread" if is_unread else None


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
