"""Find recordings that hold the same sound, and the patients who therefore belong together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from resp_tune.common.text import join_names, plural
from resp_tune.data.sounds.inspection import Inspection

if TYPE_CHECKING:
    from resp_tune.data.dataset import Recording

_NAMED = 3


class SameSound(NamedTuple):
    """Two recordings with the same sound, and how that is known."""

    one: Recording
    other: Recording
    how: str

    def __str__(self) -> str:
        return f"{_label(self.one)} = {_label(self.other)}, {self.how}"


def _label(recording: Recording) -> str:
    return f"{recording.stem} ({recording.diagnosis})"


def resolve_copies(
    recordings: Sequence[Recording], inspection: Inspection
) -> tuple[list[Recording], list[str]]:
    """Return the recordings that can be split without a leak, and a line for each kind of copy.

    Patients who share a sound become one `person`, and sessions that do so one `session`. If their
    diagnoses differ, all recordings of that sound are left out, as no one knows which is right, and
    so are the cycles of one sound with several annotations.
    """
    recordings, lines = _drop_doubtful_cycles(recordings, inspection)
    pairs = list(_pairs(recordings, inspection))
    groups = _connected((a.stem, b.stem) for a, b, _ in pairs)
    diagnoses: dict[str, set[str]] = {}
    for r in recordings:
        diagnoses.setdefault(groups.get(r.stem, r.stem), set()).add(r.diagnosis)
    doubtful = {r.stem for r in recordings if len(diagnoses[groups.get(r.stem, r.stem)]) > 1}
    person = _connected((a.patient, b.patient) for a, b, _ in pairs)
    session = _connected((a.session, b.session) for a, b, _ in pairs)
    kept = [
        replace(
            r, person=person.get(r.patient, r.patient), session=session.get(r.session, r.session)
        )
        for r in recordings
        if r.stem not in doubtful
    ]
    return kept, [*_lines(pairs, doubtful), *lines]


def _drop_doubtful_cycles(
    recordings: Sequence[Recording], inspection: Inspection
) -> tuple[list[Recording], list[str]]:
    """Remove the cycles of equal sounds that are annotated differently, and name these."""
    annotations: dict[str, set[object]] = {}
    for r in recordings:
        if r.cycles:
            annotations.setdefault(inspection.files[r.path].sound, set()).add(r.cycles)
    doubtful = {
        r.stem
        for r in recordings
        if r.cycles and len(annotations[inspection.files[r.path].sound]) > 1
    }
    if not doubtful:
        return list(recordings), []
    line = (
        f"the cycles of {plural(len(doubtful), 'recording')} left out: the same sound is annotated "
        f"differently: {join_names(sorted(doubtful))}; keep the right annotation"
    )
    return [replace(r, cycles=()) if r.stem in doubtful else r for r in recordings], [line]


def _pairs(recordings: Sequence[Recording], inspection: Inspection) -> Iterator[SameSound]:
    """Yield each recording with the first one of the same sound, and near copies."""
    first: dict[str, Recording] = {}
    for r in recordings:
        one = first.setdefault(inspection.files[r.path].sound, r)
        if one is not r:
            equal = inspection.digests[one.path] == inspection.digests[r.path]
            yield SameSound(one, r, "equal files" if equal else "equal samples")
    for a, b, correlation in inspection.near_copies.pairs:
        if a in first and b in first:
            yield SameSound(first[a], first[b], f"correlated {correlation:.2f}")


def _lines(pairs: Iterable[SameSound], doubtful: set[str]) -> Iterator[str]:
    contradicting, shared, own = [], [], []
    for pair in pairs:
        if pair.one.stem in doubtful:
            contradicting.append(pair)
        elif pair.one.patient != pair.other.patient:
            shared.append(pair)
        else:
            own.append(pair)
    if contradicting:
        yield (
            f"{plural(len(doubtful), 'recording')} left out: the same sound has different "
            f"diagnoses: {_examples(contradicting)}; name the right patient of each"
        )
    if shared:
        yield (
            f"{plural(len(shared), 'recording')} of the same sound as another patient's: "
            f"{_examples(shared)}; these patients are kept together in every split by patient"
        )
    if own:
        yield (
            f"{plural(len(own), 'recording')} of the same sound as another of the same patient: "
            f"{_examples(own)}"
        )


def _examples(pairs: Sequence[SameSound]) -> str:
    more = f"; and {len(pairs) - _NAMED} more" if len(pairs) > _NAMED else ""
    return "; ".join(map(str, pairs[:_NAMED])) + more


def _connected(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return a common name, such as `101+102`, for the names that `pairs` connect."""
    groups: dict[str, set[str]] = {}
    for one, other in pairs:
        joined = groups.get(one, {one}) | groups.get(other, {other})
        for name in joined:
            groups[name] = joined
    return {name: "+".join(sorted(group)) for name, group in groups.items()}


def drop_duplicates(inspection: Inspection) -> tuple[list[Path], list[str]]:
    """Keep the first file of each stem, which is the least deep; report copies and conflicts."""
    first: dict[str, Path] = {}
    copies: list[str] = []
    problems = []
    for path, facts in inspection.files.items():
        kept = first.setdefault(path.stem, path)
        if kept is path:
            continue
        other = inspection.files[kept]
        if (facts.sound, facts.sample_rate) == (other.sound, other.sample_rate):
            copies.append(str(path))
        else:
            problems.append(
                f"duplicate '{path}' is left out: it differs from '{kept}' of the same name"
            )
    if copies:
        problems.append(
            f"{plural(len(copies), 'recording')} a second time in another folder or format, with "
            f"the same content: one of each is used ({join_names(copies, 1)})"
        )
    return list(first.values()), problems
