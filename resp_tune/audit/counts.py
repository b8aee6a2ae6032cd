"""Count what a data set holds, and cross-tabulate diagnosis, device and age."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from resp_tune.data.dataset import Dataset, Recording
from resp_tune.training.metrics import CYCLE_CLASSES

# Lower bounds in years, inclusive; each group ends where the next begins.
AGE_GROUPS = (
    (0.0, "under 3"),
    (3.0, "3–17"),
    (18.0, "18–44"),
    (45.0, "45–64"),
    (65.0, "65 and up"),
)
NO_AGE = "unknown"
Key = Callable[[Recording], str]


def counts(dataset: Dataset) -> dict[str, Any]:
    """Count recordings, patients, sessions and cycles, by class, diagnosis and official split."""
    recordings = dataset.recordings
    return {
        **_amounts(recordings),
        "hours": round(sum(r.seconds for r in recordings) / 3600, 3),
        "cycles_by_class": _cycle_classes(recordings),
        "by_diagnosis": count_by(recordings, lambda r: r.diagnosis),
        "official": {
            split: {**_amounts(chosen), "cycles_by_class": _cycle_classes(chosen)}
            for split in ("train", "test")
            if (chosen := [r for r in recordings if r.official == split])
        },
    }


def tables(dataset: Dataset) -> dict[str, dict[str, dict[str, dict[str, int]]]]:
    """Return `{table: {row: {column: {recordings, patients}}}}`, without empty cells."""
    keys: dict[str, tuple[Key, Key]] = {
        "diagnosis_by_device": (lambda r: r.diagnosis, lambda r: r.device),
        "diagnosis_by_age": (lambda r: r.diagnosis, age_group),
        "device_by_age": (lambda r: r.device, age_group),
    }
    return {
        name: {
            value: count_by(own, column)
            for value, own in group_recordings(dataset.recordings, row).items()
        }
        for name, (row, column) in keys.items()
    }


def age_group(recording: Recording) -> str:
    """Return the name of the recording's age group, or `NO_AGE`."""
    age = recording.age
    if age is None:
        return NO_AGE
    return next(name for least, name in reversed(AGE_GROUPS) if age >= least)


def in_order(names: Iterable[str]) -> list[str]:
    """Sort names: age groups from young to old, others alphabetically."""
    ages = {name: i for i, (_, name) in enumerate(AGE_GROUPS)} | {NO_AGE: len(AGE_GROUPS)}
    return sorted(set(names), key=lambda name: (ages.get(name, -1), name))


def _amounts(recordings: Sequence[Recording]) -> dict[str, int]:
    return {
        "recordings": len(recordings),
        "patients": len({r.patient for r in recordings}),
        "sessions": len({r.session for r in recordings}),
        "cycles": sum(len(r.cycles) for r in recordings),
    }


def _cycle_classes(recordings: Iterable[Recording]) -> dict[str, int]:
    labels = Counter(c.crackle + 2 * c.wheeze for r in recordings for c in r.cycles)
    return {name: labels[label] for label, name in enumerate(CYCLE_CLASSES)}


def group_recordings(recordings: Iterable[Recording], key: Key) -> dict[str, list[Recording]]:
    """Return the recordings by `key`, sorted as `in_order`."""
    groups = defaultdict(list)
    for recording in recordings:
        groups[key(recording)].append(recording)
    return {name: groups[name] for name in in_order(groups)}


def count_by(recordings: Iterable[Recording], key: Key) -> dict[str, dict[str, int]]:
    """Return the numbers of recordings and patients by `key`."""
    return {
        name: {"recordings": len(own), "patients": len({r.patient for r in own})}
        for name, own in group_recordings(recordings, key).items()
    }
