"""A data set in ICBHI 2017's layout as a table of recordings, with what is wrong in it named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from resp_tune.common.paths import user_path
from resp_tune.common.text import join_names, one_line, plural
from resp_tune.data import discovery, metadata
from resp_tune.data.annotations import Cycle, parse_cycles
from resp_tune.data.audio_files import AudioError, Header, read_header
from resp_tune.data.discovery import Layout, Name
from resp_tune.data.duplicates import choose
from resp_tune.data.official_split import match_official
from resp_tune.errors import UserError

if TYPE_CHECKING:  # a command that only lists what is there should not wait for pandas
    import pandas as pd

LOCATIONS = ("Tc", "Al", "Ar", "Pl", "Pr", "Ll", "Lr")
MODES = ("sc", "mc")
DEVICES = ("AKGC417L", "LittC2SE", "Litt3200", "Meditron")


@dataclass(frozen=True)
class Recording:
    """One audio file. `sample_rate` in Hz, `samples` of one channel, `age` in years.

    `mode` is sc (one position after the other) or mc (several at once). `session`, patient and
    recording index, is what must never stand on two sides: its files may hold the same breaths.
    """

    stem: str
    path: Path
    patient: str
    session: str
    location: str
    mode: str
    device: str
    diagnosis: str
    age: float | None
    sex: str | None
    official: Literal["train", "test"] | None
    sample_rate: int
    channels: int
    samples: int
    cycles: tuple[Cycle, ...]

    @property
    def seconds(self) -> float:
        """Length in seconds."""
        return self.samples / self.sample_rate


@dataclass(frozen=True)
class Dataset:
    """The recordings that can be used, sorted by stem; `problems` has a line for all else.

    `synthetic` is true of sets that were made by this program and not recorded from anyone.
    """

    root: Path
    recordings: tuple[Recording, ...]
    problems: tuple[str, ...]
    synthetic: bool

    def table(self) -> pd.DataFrame:
        """Return one row per recording: its fields but the cycles, then `n_cycles`, `seconds`."""
        import pandas as pd

        names = [field.name for field in fields(Recording) if field.name != "cycles"]
        rows = [
            [str(r.path) if name == "path" else getattr(r, name) for name in names]
            + [len(r.cycles), r.seconds]
            for r in self.recordings
        ]
        return pd.DataFrame(rows, columns=[*names, "n_cycles", "seconds"])


def load_dataset(path: str | Path) -> Dataset:
    """Read the data set in `path` or in a folder below it; audio is not decoded, only its headers.

    Needed are recordings named `<patient>_<index>_<location>_<mode>_<device>` (wav or FLAC) and a
    table of diagnoses; annotations, demographics and the official split are read where present.
    Raises `UserError` when there is no such folder, or nothing in it can be used.
    """
    root = _folder(path)
    found = discovery.find_layout(root)
    _check_found(root, found)
    problems = [*found.problems, *_odd_files(found)]
    headers, lines = _headers(found.audio)
    problems += lines
    chosen, lines = choose(headers)
    problems += lines
    diagnoses = metadata.read_diagnoses(found.diagnoses)
    people = metadata.read_people(found.demographics)
    official = metadata.read_official(found.official)
    problems += [*diagnoses.problems, *people.problems, *official.problems]
    named = {path: name for path in chosen if (name := discovery.parse_stem(path.stem))}
    sides: dict[Path, metadata.Side] = {}
    if found.official:
        sides, lines = match_official(named, official.values)
        problems += lines
    annotations = _Annotations(found.annotations)
    recordings = []
    for audio, name in sorted(named.items(), key=lambda item: item[0].stem):
        diagnosis = diagnoses.values.get(name.patient)
        if diagnosis is None:
            problems.append(_no_diagnosis(audio, name, name.patient in diagnoses.conflicts))
            continue
        header = headers[audio]
        cycles, lines = annotations.cycles(audio, header.seconds)
        problems += lines
        person = people.values.get(name.patient, metadata.Person(None, None))
        recordings.append(
            _recording(audio, name, header, diagnosis, person, sides.get(audio), cycles)
        )
    if not recordings:
        first = "; ".join(problems[:3])
        raise UserError(f"none of the {len(found.audio)} recordings in '{root}' is usable: {first}")
    problems += [
        *annotations.left(named, found.audio),
        *_gaps(recordings, found),
        *_unusual(recordings),
    ]
    lines = [one_line(problem) for problem in problems]
    return Dataset(root, tuple(recordings), tuple(lines), found.synthetic)


def _recording(
    path: Path,
    name: Name,
    header: Header,
    diagnosis: str,
    person: metadata.Person,
    side: metadata.Side | None,
    cycles: tuple[Cycle, ...],
) -> Recording:
    return Recording(
        stem=path.stem,
        path=path,
        patient=name.patient,
        session=f"{name.patient}_{name.index}",
        location=name.location,
        mode=name.mode,
        device=name.device,
        diagnosis=diagnosis,
        age=person.age,
        sex=person.sex,
        official=side,
        sample_rate=header.sample_rate,
        channels=header.channels,
        samples=header.samples,
        cycles=cycles,
    )


def _folder(path: str | Path) -> Path:
    text = str(path)
    scheme, mark, rest = text.partition("://")
    if mark and scheme != "file":
        raise UserError(
            f"'{text}': data cannot be read from {scheme}:// yet; copy it to a folder that every "
            "node sees and give that folder's path"
        )
    root = user_path(rest if mark else text)
    try:
        there, is_folder = root.exists(), root.is_dir()
    except OSError as error:
        raise UserError(f"'{text}' cannot be opened: {error.strerror}") from error
    if not there:
        raise UserError(f"'{text}' is not there: give the folder that holds the data set")
    if not is_folder:
        raise UserError(f"'{text}' is a file: give the folder that holds the data set (unpacked)")
    return root.absolute()  # the workers of a cluster stand in other folders


def _check_found(root: Path, found: Layout) -> None:
    if not found.audio:
        odd = f"; {len(found.odd)} other audio files, e.g. {found.odd[0].name}" if found.odd else ""
        raise UserError(
            f"no recordings in '{root}' or up to {discovery.MAX_DEPTH} folders below it: "
            f"looked for <patient>_<index>_<location>_<mode>_<device>.wav or .flac{odd}; give the "
            "folder of the unpacked ICBHI 2017 set, or make one with python -m resp_tune.synth DIR"
        )
    if not found.diagnoses:
        above = discovery.find_diagnoses(root.resolve().parent)
        hint = (
            f"there is one a folder higher: give '{above.parent}'"
            if above
            else "put the data set's table of diagnoses beside the audio folder"
        )
        raise UserError(
            f"{len(found.audio)} recordings in '{root}', but no "
            f"{' or '.join(discovery.DIAGNOSIS_NAMES)} there or below: {hint}"
        )


def _odd_files(found: Layout) -> list[str]:
    return [
        f"'{path}' is left out: recordings are wav or FLAC"
        if path.suffix.lower() in discovery.OTHER_AUDIO_SUFFIXES
        else f"'{path}' is left out: its name is not <patient>_<index>_<location>_<mode>_<device>"
        for path in found.odd
    ]


def _headers(audio: Sequence[Path]) -> tuple[dict[Path, Header], list[str]]:
    """The headers of the readable files; threads, because network folders answer slowly."""

    def read(path: Path) -> Header | AudioError:
        try:
            return read_header(path)
        except AudioError as error:
            return error

    with ThreadPoolExecutor(8) as pool:
        answers = dict(zip(audio, pool.map(read, audio), strict=True))
    headers = {path: answer for path, answer in answers.items() if isinstance(answer, Header)}
    problems = []
    for path in audio:
        answer = answers[path]
        if isinstance(answer, AudioError):
            problems.append(f"{answer}; it is left out")
        elif answer.problem:
            problems.append(answer.problem)
    return headers, problems


def _no_diagnosis(audio: Path, name: Name, conflict: bool) -> str:
    reason = "two different diagnoses" if conflict else "no diagnosis"
    return f"'{audio.name}' is left out: its patient {name.patient} has {reason}"


class _Annotations:
    """The annotation files by the recording they belong to."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._by_stem: dict[str, list[Path]] = {}
        for path in paths:
            self._by_stem.setdefault(path.stem, []).append(path)

    def cycles(self, audio: Path, seconds: float) -> tuple[tuple[Cycle, ...], list[str]]:
        """The cycles of a recording, from the file beside it or else from the first elsewhere."""
        paths = self._by_stem.get(audio.stem, [])
        beside = [path for path in paths if path.parent == audio.parent]
        for path in (beside or paths)[:1]:
            try:
                cycles, problems = parse_cycles(metadata.read_text(path), seconds)
            except OSError as error:
                return (), [f"'{path}' cannot be read: {error.strerror}"]
            if not cycles and not problems:
                return (), [f"{path.name} holds no cycles"]
            return cycles, [f"{path.name} {problem}" for problem in problems]
        return (), []

    def left(self, named: Iterable[Path], audio: Iterable[Path]) -> list[str]:
        """Annotations of no audio file, and recordings without annotations."""
        stems = {path.stem for path in named}
        lost = sorted(set(self._by_stem) - {path.stem for path in audio})
        bare = sorted(stems - set(self._by_stem)) if self._by_stem else []
        return [
            f"{plural(len(stems), noun)} without {what}: {join_names(stems)}"
            for stems, noun, what in (
                (lost, "annotation", "a recording"),
                (bare, "recording", "annotations"),
            )
            if stems
        ]


def _gaps(recordings: Sequence[Recording], found: Layout) -> list[str]:
    """What patients lack or have too much of, once it is known which can be used."""
    lines = []
    if found.demographics:
        without = {r.patient: _missing(r) for r in recordings if _missing(r)}
        for what in sorted(set(without.values())):
            patients = sorted(patient for patient, gap in without.items() if gap == what)
            lines.append(f"no {what} of {plural(len(patients), 'patient')}: {join_names(patients)}")
    train, test = (
        {r.patient: r for r in recordings if r.official == side} for side in ("train", "test")
    )
    if shared := sorted(set(train) & set(test)):
        sessions = [{r.session for r in recordings if r.official == s} for s in ("train", "test")]
        both = len(sessions[0] & sessions[1])
        lines.append(
            f"{plural(len(shared), 'patient')} ({join_names(shared)}) and {plural(both, 'session')}"
            " of theirs are in both parts of the official split: --drop-shared-patients leaves "
            "them out of training"
        )
    return lines


def _missing(recording: Recording) -> str:
    gaps = [name for name in ("age", "sex") if getattr(recording, name) is None]
    return " and ".join(gaps)


def _unusual(recordings: Sequence[Recording]) -> list[str]:
    lines = []
    for field, known in (("location", LOCATIONS), ("mode", MODES), ("device", DEVICES)):
        for value, number in sorted(Counter(getattr(r, field) for r in recordings).items()):
            if value not in known:
                lines.append(
                    f"{field} '{value}' of {plural(number, 'recording')} is not one of ICBHI's "
                    f"({', '.join(known)}); kept as it is"
                )
    for value, number in sorted(Counter(r.diagnosis for r in recordings).items()):
        if value not in metadata.DIAGNOSES:
            lines.append(
                f"diagnosis '{value}' of {plural(number, 'recording')} is not one of ICBHI's "
                f"({', '.join(metadata.DIAGNOSES)}); no built-in task names it"
            )
    return lines
