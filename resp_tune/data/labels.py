"""What the tables of a data set say about its recordings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from resp_tune.common.text import amount, join_names
from resp_tune.data.discovery import Layout, Name, unread_tables
from resp_tune.data.metadata import (
    OfficialSplit,
    Person,
    Table,
    match_official,
    read_diagnoses,
    read_official,
    read_people,
)
from resp_tune.data.patients import match_patients, near_misses, plain_patient

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
