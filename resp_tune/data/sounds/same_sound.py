"""Find recordings that hold the same sound, and the patients who therefore belong together.

Equal samples are found by their hash. Near copies differ in level, rate, codec, start or length:
the envelopes of the log energy in twelve bands are compared at every lag. Slow movements (breaths)
and what all bands have in common (clicks) are removed first: what is left are the random
fluctuations of one recording, which no other recording shares.

Measured on the 920 recordings of ICBHI 2017 (4 kHz, 20 s): of the pairs of different patients none
correlates above 0.33, of their first five seconds none above 0.53, so that chance is about
1.5 / √seconds; of synthetic recordings, which repeat themselves, some correlate 0.68 over 6 s and
0.48 over 20 s. Forty altered copies correlate at least 0.94 at a tenth of the level, 0.87 when cut
to a half, 1.00 at 44.1 kHz, 0.81 when shifted by half a frame, 0.59 as GSM 6.10, 0.62 as MP3 at
8 kHz, and 0.65 with noise 20 dB below them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from resp_tune.common.text import join_names, plural

if TYPE_CHECKING:
    from resp_tune.data.dataset import Recording
    from resp_tune.data.sounds.inspection import Inspection

Envelope = npt.NDArray[np.float32]
Floats = npt.NDArray[np.float64]

MIN_CORRELATION, MIN_CORRELATION_SECONDS = 0.55, 2.0  # the latter by √seconds in common
MIN_SECONDS = 3.0  # of sound that two recordings have in common
MAX_COMPARED = 5000  # pieces; the number of pairs grows with its square
_CANDIDATE = 0.35  # correlation of the coarse envelopes, from which a pair is compared exactly
_WINDOW, _HOP = 0.256, 0.064  # seconds
_EDGES = np.geomspace(60, 1500, 13)  # Hz
_SMOOTHED = 15  # frames
_FLOOR = 1e-3  # of the mean energy of a band; quieter is mostly the noise of the encoding
_LIMIT = 3.0  # standard deviations, so that a single event does not decide
_PIECE = 256  # coarse frames of two hops: 33 s; longer recordings are cut into overlapping pieces
_ROWS = 16  # pieces that are compared at once with all others
_NAMED = 3  # pairs, in a line on copies


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


def envelope(samples: npt.NDArray[np.float32], sample_rate: int) -> Envelope:
    """Return the normalised envelopes of a recording, float32 `[bands, frames]`, 15.6 frames/s."""
    step = max(1, round(sample_rate / 4000))
    if step > 1:  # a mean is low-pass enough for energies below 1500 Hz
        samples = samples[: len(samples) // step * step].reshape(-1, step).mean(axis=1)
    rate = sample_rate / step
    length = round(_WINDOW * rate)
    count = int((len(samples) - length) / (_HOP * rate)) + 1
    if len(samples) < length or count < _SMOOTHED:
        return np.zeros((len(_EDGES) - 1, 0), np.float32)
    starts = np.round(np.arange(count) * _HOP * rate).astype(np.int64)
    frames = np.lib.stride_tricks.sliding_window_view(samples, length)[starts]
    spectrum = np.fft.rfft(frames * np.hanning(length).astype(np.float32), axis=1)
    power = spectrum.real**2 + spectrum.imag**2
    frequencies = np.fft.rfftfreq(length, 1 / rate)
    inside = (frequencies[:, None] >= _EDGES[:-1]) & (frequencies[:, None] < _EDGES[1:])
    bands = (power @ inside.astype(np.float32)).T.astype(np.float64)
    energy = np.log(bands + _FLOOR * bands.mean(axis=1, keepdims=True) + 1e-12)
    return _normalised(_normalised(_without_trend(energy), common=True)).astype(np.float32)


def _without_trend(energy: Floats) -> Floats:
    half = _SMOOTHED // 2
    summed = np.cumsum(np.pad(energy, ((0, 0), (half + 1, half)), mode="edge"), axis=1)
    trend = (summed[:, _SMOOTHED:] - summed[:, :-_SMOOTHED]) / _SMOOTHED
    without: Floats = energy - trend
    return without


def _normalised(energy: Floats, *, common: bool = False) -> Floats:
    """Scale each band to a deviation of 1 and limit it; with `common`, remove the bands' mean."""
    deviation = energy.std(axis=1, keepdims=True)
    scaled: Floats = np.where(deviation > 1e-6, energy / np.maximum(deviation, 1e-6), 0.0)
    if common:
        scaled -= scaled.mean(axis=0, keepdims=True)
        return scaled
    limited: Floats = np.clip(scaled, -_LIMIT, _LIMIT)
    limited -= limited.mean(axis=1, keepdims=True)
    return limited


@dataclass(frozen=True)
class NearCopies:
    """Pairs of sounds with their correlation at the best lag, and why some were not compared."""

    pairs: tuple[tuple[str, str, float], ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> NearCopies:
        """Return what `dataclasses.asdict` made, after JSON."""
        pairs = tuple((str(a), str(b), float(found)) for a, b, found in values["pairs"])
        return cls(pairs, tuple(map(str, values["notes"])))


def find_near_copies(sounds: Mapping[str, Envelope], owners: Mapping[str, str]) -> NearCopies:
    """Return the pairs of `sounds` of different owners that are the same sound, sorted.

    Sounds shorter than `MIN_SECONDS` are not compared, and none if there are too many.
    """
    names = sorted(sounds)
    numbers, parts = [], []
    for number, name in enumerate(names):
        for part in _pieces(sounds[name]):
            numbers.append(number)
            parts.append(part)
    if len(parts) > MAX_COMPARED:
        note = (
            f"{len(names)} recordings are too many to be compared at every lag: copies with "
            "another level, rate or codec are not looked for, equal ones are"
        )
        return NearCopies((), (note,))
    owner = np.array([owners[names[number]] for number in numbers])
    pairs = set()
    for row, column in _candidates(parts, owner):
        pairs.add((min(numbers[row], numbers[column]), max(numbers[row], numbers[column])))
    found = []
    for one, other in sorted(pairs):
        value = copy_correlation(sounds[names[one]], sounds[names[other]])
        if value is not None:
            found.append((names[one], names[other], round(value, 3)))
    return NearCopies(tuple(found))


def _pieces(whole: Envelope) -> Iterator[Envelope]:
    """Yield the pieces of a recording, smoothed to every second frame."""
    if whole.shape[1] < MIN_SECONDS / _HOP:
        return
    padded = np.pad(whole, ((0, 0), (1, 1)), mode="edge")
    weighted = padded[:, :-2] + 2 * whole + padded[:, 2:]
    coarse = weighted[:, ::2] / np.float32(4)
    for start in range(0, max(1, coarse.shape[1] - _PIECE // 2), _PIECE // 2):
        yield coarse[:, start : start + _PIECE]


def _candidates(
    parts: Sequence[Envelope], owner: npt.NDArray[np.str_]
) -> Iterator[tuple[int, int]]:
    """Yield pairs of parts of different owners that correlate at some lag, by FFTs."""
    import scipy.fft  # slow to import

    if len(set(owner.tolist())) < 2:
        return
    # The correlation is circular, which adds noise but hides nothing: the exact one follows.
    length = 1 << (max(part.shape[1] for part in parts) - 1).bit_length()
    padded = np.stack([np.pad(p, ((0, 0), (0, length - p.shape[1]))) for p in parts])
    spectra = np.ascontiguousarray(scipy.fft.rfft(padded, axis=2, workers=-1).transpose(2, 0, 1))
    conjugate = np.ascontiguousarray(spectra.conj().transpose(0, 2, 1))
    energy = np.square(padded).sum(axis=(1, 2))
    for first in range(0, len(parts), _ROWS):
        rows = slice(first, first + _ROWS)
        products = np.matmul(spectra[:, rows], conjugate[:, :, first:])
        by_lag = scipy.fft.irfft(products, length, axis=0, workers=-1)
        scale = np.minimum(energy[rows, None], energy[None, first:])
        similar = by_lag.max(axis=0) >= _CANDIDATE * np.maximum(scale, 1e-6)
        similar &= owner[rows, None] != owner[None, first:]
        for row, column in zip(*np.nonzero(similar), strict=True):
            yield first + int(row), first + int(column)


def copy_correlation(one: Envelope, other: Envelope) -> float | None:
    """Return the correlation at the lag at which two recordings are copies, None if at none.

    At each lag the frames in common are compared, which must be `MIN_SECONDS` and half of the
    shorter recording. What chance does not reach is at least `MIN_CORRELATION`, and more for less
    than 13 s in common.
    """
    length = 1 << (one.shape[1] + other.shape[1] - 1).bit_length()

    def by_lag(a: npt.NDArray[np.floating], b: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
        product = np.fft.rfft(a, length) * np.fft.rfft(b, length).conj()
        return np.fft.irfft(np.atleast_2d(product).sum(axis=0), length)

    a, b = one.astype(np.float64), other.astype(np.float64)
    all_a, all_b = np.ones(a.shape[1]), np.ones(b.shape[1])
    frames = np.rint(by_lag(all_a, all_b))
    enough = frames >= max(MIN_SECONDS / _HOP - 1, min(a.shape[1], b.shape[1]) / 2)
    if not enough.any():
        return None
    energies = by_lag(np.square(a).sum(axis=0), all_b) * by_lag(all_a, np.square(b).sum(axis=0))
    found = by_lag(a, b)[enough] / np.sqrt(np.maximum(energies[enough], 1e-6))
    by_chance = MIN_CORRELATION_SECONDS / np.sqrt(frames[enough] * _HOP)
    best = np.argmax(found / np.maximum(MIN_CORRELATION, by_chance))
    is_copy = found[best] >= max(MIN_CORRELATION, by_chance[best])
    return min(1.0, float(found[best])) if is_copy else None
