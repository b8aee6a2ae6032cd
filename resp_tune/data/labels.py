"""What the tables of a data set say about its recordings, also where they spell names otherwise."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from resp_tune.common.text import amount, join_names, plural
from resp_tune.data.columns import plain_patient
from resp_tune.data.discovery import Layout, Name, parse_stem, unread_tables
from resp_tune.data.metadata import (
    OfficialSplit,
    Person,
    Table,
    read_diagnoses,
    read_official,
    read_people,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Labels:
    """Diagnosis and person of each patient, the official split of each file, and the problems.

    Patients are written as in the file names. A patient without an entry has no such label.
    """

    diagnoses: dict[str, str]
    people: dict[str, Person]
    official: dict[Path, OfficialSplit]
    problems: tuple[str, ...]


def read_labels(layout: Layout, names: Mapping[Path, Name]) -> Labels:
    """Read the tables of `layout` for the recordings `names`.

    The problems are sorted: first what leaves recordings out, last what is not read.
    """
    patients = sorted({name.patient for name in names.values()})
    stems = [path.stem for path in names]
    table = read_diagnoses(layout.diagnoses, patients)
    diagnoses, matched, conflicts = _of_patients(layout.diagnoses, table, patients)
    left_out = _left_out(names, diagnoses, table, conflicts)
    listed = read_people(layout.demographics or layout.diagnoses, patients)
    people, spelled, _ = _of_patients(layout.demographics, listed, patients)
    if not layout.demographics:  # ages may be beside the diagnoses, or nowhere
        listed, spelled = replace(listed, problems=()), ()
    official = read_official(layout.official, stems)
    problems = [*left_out, *table.problems, *matched]
    problems += [*official.problems, *listed.problems, *spelled]
    splits: dict[Path, OfficialSplit] = {}
    if layout.official:
        splits, unmatched = match_official(names, official.values)
        problems += unmatched
    problems += [
        f"{path.name} is not used: a protocol draws its own folds of patients"
        for path in layout.folds
    ]
    if unread := unread_tables(layout):
        problems.append(unread)
    return Labels(diagnoses, people, splits, tuple(problems))


def _of_patients(
    paths: Sequence[Path], table: Table[T], patients: Sequence[str]
) -> tuple[dict[str, T], tuple[str, ...], frozenset[str]]:
    """Return the values by patient of the recordings, a line per problem, and the conflicts."""
    if not table.values:
        return {}, (), table.conflicts
    name = join_names([path.name for path in paths])
    matched = match_patients(name, table.values, patients)
    contradicted = {plain_patient(patient) for patient in table.conflicts}
    conflicts = {p for p in patients if plain_patient(p) in contradicted} | matched.conflicts
    values = {p: table.values[t] for p, t in matched.names.items() if p not in conflicts}
    return values, matched.problems, frozenset(conflicts)


def _left_out(
    names: Mapping[Path, Name],
    diagnoses: Mapping[str, str],
    table: Table[str],
    conflicts: frozenset[str],
) -> list[str]:
    """Return a line for the recordings whose patients have no diagnosis, and one for two."""
    lines = []
    bare = {path: n.patient for path, n in names.items() if n.patient not in diagnoses}
    for is_conflict, reason in ((False, "no diagnosis"), (True, "two different diagnoses")):
        files = {path: p for path, p in bare.items() if (p in conflicts) == is_conflict}
        if not files:
            continue
        patients = sorted(set(files.values()))
        who = f"patient {patients[0]} has" if len(patients) == 1 else (
            f"patients {join_names(patients)} have"
        )  # fmt: skip
        near = "" if is_conflict else near_misses(patients, table.values)
        example = min(path.name for path in files)
        size = amount(len(files), "recording", len(patients))
        lines.append(f"{size} left out, e.g. {example}: {who} {reason}{near}")
    return lines


def match_official(
    names: Mapping[Path, Name], official: Mapping[str, OfficialSplit]
) -> tuple[dict[Path, OfficialSplit], list[str]]:
    """Return the official split of each recording, and a line for each that has none.

    The published table names one device wrongly: a recording that is not in it is matched by its
    name without the device, if that is unique.
    """
    splits = {path: official[path.stem] for path in names if path.stem in official}
    problems: list[str] = []
    unmatched = [path for path in names if path not in splits]
    here = {path.stem for path in names}
    unused = {stem: split for stem, split in official.items() if stem not in here}
    aliases: dict[tuple[str, ...], list[str]] = {}
    for stem in unused:
        if alias := parse_stem(stem):
            aliases.setdefault(alias[:-1], []).append(stem)
    wanted = Counter(names[path][:-1] for path in unmatched)
    for path in list(unmatched):
        key = names[path][:-1]
        if len(stems := aliases.get(key, [])) == wanted[key] == 1:
            splits[path] = unused.pop(stems[0])
            unmatched.remove(path)
            problems.append(
                f"the official split calls {path.stem} {stems[0]}: matched without the device"
            )
    if unused:
        problems.append(
            f"the official split names {plural(len(unused), 'recording')} not here: "
            f"{join_names(sorted(unused))}"
        )
    if unmatched:
        stems = sorted(path.stem for path in unmatched)
        problems.append(
            f"{plural(len(stems), 'recording')} not in the official split: {join_names(stems)}"
        )
    return splits, problems


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
