"""Match the patients of file names with those of a table, which may be written differently."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from resp_tune.common.text import join_names, plural

T = TypeVar("T")

DECIMALS = re.compile(r"(?<=\d)[.,]00?$")  # of spreadsheets; `1.000` may be a thousand


@dataclass(frozen=True)
class Matched:
    """Which patient of a table is which patient of the recordings.

    `names` maps patients of the recordings to those of the table; `conflicts` are patients that the
    table has in several spellings with different values. `problems` has a line for what was matched
    although it is written differently, and one if most patients of the table have no recording.
    """

    names: dict[str, str]
    conflicts: frozenset[str]
    problems: tuple[str, ...]


def plain_patient(name: str) -> str:
    """Return a patient without what spreadsheets and people change: case, leading zeros, `.0`."""
    name = DECIMALS.sub("", name.casefold())
    return re.sub(r"(?<!\d)0+(?=\d)", "", name)


def match_patients(table: str, values: Mapping[str, T], patients: Collection[str]) -> Matched:
    """Match `patients` of the recordings with the keys of `values`, read from `table`.

    A different spelling is matched only if it is one to one. Patients that differ only in spelling
    are matched only if the table has all of them, because it may have lost the difference.
    """
    theirs, ours = _by_spelling(values), _by_spelling(patients)
    names: dict[str, str] = {}
    conflicts: set[str] = set()
    unclear: list[str] = []
    for plain, same in ours.items():
        listed = theirs.get(plain, [])
        if len(same) == 1 and len({values[key] for key in listed}) == 1:
            names[same[0]] = same[0] if same[0] in listed else listed[0]
        elif len(same) == 1 and listed:
            conflicts.update(same)
        elif set(same) <= set(listed):
            names.update({name: name for name in same})
        elif listed:
            unclear += same
    problems = [*_unclear(table, unclear), *_notes(table, names, conflicts, values)]
    return Matched(names, frozenset(conflicts), tuple(problems))


def _by_spelling(names: Iterable[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(plain_patient(name), []).append(name)
    return groups


def _unclear(table: str, patients: Sequence[str]) -> Iterable[str]:
    if patients:
        yield (
            f"patients {join_names(sorted(patients))} differ only in case or zeros, and {table} "
            "does not have all of them: none is used"
        )


def _notes(
    table: str, names: Mapping[str, str], conflicts: Collection[str], values: Mapping[str, T]
) -> Iterable[str]:
    if conflicts:
        yield (
            f"{table} has {plural(len(conflicts), 'patient')} in several spellings with different "
            f"values: {join_names(sorted(conflicts))}; none is used"
        )
    if other := [f"{ours} is {theirs}" for ours, theirs in sorted(names.items()) if ours != theirs]:
        yield (
            f"{plural(len(other), 'patient')} matched with another spelling in {table}: "
            f"{join_names(other)} there"
        )
    unused = sorted(set(values) - set(names.values()))
    if 2 * len(unused) > len(values):
        yield (
            f"{len(unused)} of {plural(len(values), 'patient')} in {table} have no recording: "
            f"{join_names(unused)}"
        )


def near_misses(patients: Sequence[str], table: Collection[str]) -> str:
    """Return a hint for patients that a table lacks but has with other letters, such as P101."""
    numbers: dict[str, list[str]] = {}
    for key in table:
        numbers.setdefault(_number(key), []).append(key)
    near = [keys[0] for p in patients if (keys := numbers.get(_number(p), [])) and _number(p)]
    return f"; the table has {join_names(near)}" if near else ""


def _number(patient: str) -> str:
    return re.sub(r"\D", "", patient).lstrip("0")
