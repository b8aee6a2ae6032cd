"""A training, validation and test split: the value, its leaks, and its file."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from pydantic import TypeAdapter

from resp_tune.common.paths import write_atomically
from resp_tune.common.text import join_names, plural
from resp_tune.data.dataset import Dataset, refusal
from resp_tune.data.tasks import Clip, Clips
from resp_tune.errors import UserError


@dataclass(frozen=True)
class Fold:
    """The stems of the training and of the validation split, each sorted."""

    train: tuple[str, ...]
    validation: tuple[str, ...]


@dataclass(frozen=True)
class Leaks:
    """Numbers of patients and sessions in more than one split (training, validation, test).

    Patients who have a sound in common count as one, which is in all splits that one of them is in.
    `recording_share` is the fraction of validation and test recordings whose patient is in
    training, averaged over the folds.
    """

    patients: int
    sessions: int
    recording_share: float

    @property
    def line(self) -> str | None:
        """Return a warning, or None if nothing leaks."""
        if not self.patients:
            return None
        return (
            f"LEAK: {self.recording_share:.1%} of the held-out recordings have their patient in "
            f"training ({plural(self.patients, 'patient')}, {plural(self.sessions, 'session')} in "
            "more than one split): these scores do not apply to new patients"
        )


@dataclass(frozen=True)
class Split:
    """The recordings to train, validate and test on, by stem; `test` is None without a test split.

    `classes` are those that can be scored, in the task's order; recordings (in the task `cycles`:
    clips) of other classes are in no split. `notes` has a line for each thing left out or leaking.
    """

    protocol: str
    task: str
    split_seed: int
    folds: tuple[Fold, ...]
    test: tuple[str, ...] | None
    classes: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Return the SHA-256 of everything but the notes, as canonical JSON."""
        content = {name: value for name, value in asdict(self).items() if name != "notes"}
        text = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def select_clips(self, clips: Clips, stems: Iterable[str]) -> tuple[Clip, ...]:
        """Return the clips of the recordings `stems` that have one of `classes`, in their order.

        Their labels are indices into `classes`.
        """
        wanted = set(stems)
        label_of = {clips.task.classes.index(name): i for i, name in enumerate(self.classes)}
        return tuple(
            Clip(clip.recording, clip.start, clip.end, label_of[clip.label])
            for clip in clips.clips
            if clip.label in label_of and clip.recording.stem in wanted
        )

    @property
    def stems(self) -> set[str]:
        """Return the stems of all recordings in any split."""
        return {s for f in self.folds for s in (*f.train, *f.validation)} | set(self.test or ())

    def leaks(self, dataset: Dataset) -> Leaks:
        """Count patients and sessions in more than one split; `UserError` for another data set."""
        known = {r.stem: r for r in dataset.recordings}
        if missing := sorted(self.stems - set(known)):
            raise refusal(
                f"{len(missing)} recordings of the split are not in '{dataset.root}', e.g. "
                f"{missing[0]}: give the data set that the split was made from",
                dataset.problems,
            )
        patients: set[str] = set()
        sessions: set[str] = set()
        shares = []
        for fold in self.folds:
            parts = (fold.train, fold.validation, self.test or ())
            patients |= _repeated({known[s].person for s in part} for part in parts)
            sessions |= _repeated({known[s].session for s in part} for part in parts)
            trained = {known[s].person for s in fold.train}
            held_out = [*fold.validation, *(self.test or ())]
            shares.append(sum(known[s].person in trained for s in held_out) / len(held_out))
        return Leaks(len(patients), len(sessions), float(np.mean(shares)))


def save_split(split: Split, path: str | Path) -> None:
    """Write `split` as JSON, atomically."""
    content = {**asdict(split), "digest": split.digest}
    write_atomically(Path(path), (json.dumps(content, indent=1) + "\n").encode())


def load_split(path: str | Path) -> Split:
    """Read what `save_split` wrote; raise `UserError` if it is missing, damaged or changed."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        split = TypeAdapter(Split).validate_python(content)
        digest = content["digest"]
    except OSError as error:
        raise UserError(
            f"'{path}' cannot be read ({error.strerror}): restore it, or move it away"
        ) from error
    except (ValueError, KeyError, RecursionError) as error:
        raise UserError(
            f"'{path}' is damaged: it holds no split; restore it from a copy"
        ) from error
    if digest != split.digest:
        raise UserError(
            f"'{path}' was changed or damaged: its digest does not match; restore it from a copy"
        )
    return split


def _repeated(groups: Iterable[set[str]]) -> set[str]:
    counts = Counter(itertools.chain.from_iterable(groups))
    return {name for name, count in counts.items() if count > 1}


def load_same_split(path: Path, now: Split, digest: str | None, dataset: Dataset) -> Split:
    """Return the split saved in `path`, which must equal `now`, the split of `dataset`.

    A damaged file is replaced by `now` if `digest`, from the study, is the digest of `now`.
    Raises `UserError` if the splits differ.
    """
    try:
        saved = load_split(path)
    except UserError:
        if now.digest != digest or not path.is_file():
            raise
        return now
    if saved.digest != now.digest:
        raise refusal(
            f"the split of this search ({path}) is not that of this data, task and protocol: "
            f"{_difference(saved, now)}. Give the old options, or another name",
            dataset.problems if saved.stems != now.stems else (),
        )
    return saved


def _difference(saved: Split, now: Split) -> str:
    for name in ("task", "protocol", "split_seed", "classes"):
        before, after = getattr(saved, name), getattr(now, name)
        if before != after:
            return f"{name.replace('_', ' ')} was {before}, now {after}"
    if len(saved.folds) != len(now.folds):
        return f"folds was {len(saved.folds)}, now {len(now.folds)}"
    old, new = saved.stems, now.stems
    if old == new:
        return "the same recordings are divided differently"
    kinds = {"gone": old - new, "new": new - old}
    return "recordings are " + "; ".join(
        f"{kind}: {join_names(sorted(stems), 5)}" for kind, stems in kinds.items() if stems
    )
