"""Recordings that occur twice in a data set, as in Kaggle's archive."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from resp_tune.common.text import join_names, plural
from resp_tune.data.audio_files import AudioError, read_audio

_BLOCK = 1 << 18


def drop_duplicates(paths: Iterable[Path]) -> tuple[list[Path], list[str]]:
    """Keep the first file of each stem, which is the least deep; report copies and conflicts."""
    first: dict[str, Path] = {}
    copies: list[Path] = []
    problems = []
    for path in paths:
        kept = first.setdefault(path.stem, path)
        if kept is path:
            continue
        if _same_content(kept, path):
            copies.append(path)
        else:
            problems.append(
                f"duplicate '{path}' is left out: it differs from '{kept}' of the same name"
            )
    if copies:
        problems.append(
            f"{plural(len(copies), 'recording')} a second time in another folder or format, with "
            f"the same content: one of each is used ({join_names([str(p) for p in copies], 1)})"
        )
    return list(first.values()), problems


def _same_content(one: Path, other: Path) -> bool:
    """Compare the samples of a wav and a FLAC; else the bytes at start, middle and end.

    Files of up to 768 KiB are compared whole.
    """
    if one.suffix.lower() != other.suffix.lower():
        try:
            (samples, rate), (other_samples, other_rate) = read_audio(one), read_audio(other)
        except AudioError:
            return False  # reported as a conflict
        return rate == other_rate and np.array_equal(samples, other_samples)
    size = one.stat().st_size
    if size != other.stat().st_size:
        return False
    with one.open("rb") as a, other.open("rb") as b:
        for start in (0, max(0, (size - _BLOCK) // 2), max(0, size - _BLOCK)):
            a.seek(start)
            b.seek(start)
            if a.read(_BLOCK) != b.read(_BLOCK):
                return False
    return True
