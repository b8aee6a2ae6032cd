"""Protocols: how a task's recordings are divided into train, validation and test sides."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import StratifiedGroupKFold

from resp_tune.common.choices import PROTOCOLS
from resp_tune.common.text import amount, join_names
from resp_tune.data.dataset import Dataset
from resp_tune.data.split import Fold, Split
from resp_tune.data.tasks import Clips, Task
from resp_tune.errors import UserError, nearest

OUTER_FOLDS = 5
INNER_FOLDS = 4
_RANDOM_STATES = 200


def make_split(
    dataset: Dataset,
    clips: Clips,
    protocol: str,
    *,
    split_seed: int = 0,
    folds: int = 1,
    hold_out_device: str | None = None,
    drop_shared_patients: bool = False,
) -> Split:
    """Divide the recordings of `clips`; the same arguments give the same sides.

    `patient`: fold 0 of a `StratifiedGroupKFold` by patient in 5 is the test side, the first
    `folds` of one in 4 of the rest are the folds. `official`: the challenge's test side, folds by
    patient inside its train side; without the patients that stand on both when
    `drop_shared_patients` (they leave training, so that the test side stays the published one).
    `recording`: the notebook's random 80/20, patients ignored, no test side. `device`: the
    recordings of `hold_out_device` are the test side, its patients leave training.

    Of `cycles` a recording is stratified by its commonest label. (Over the cycles themselves no two
    patients are alike, and `StratifiedGroupKFold`, which shuffles among equals only, would give
    nearly the same sides for every seed.) Should a class miss from a side, the next of a fixed
    sequence of random states is tried.
    Raises `UserError` for a pair of task and protocol, or a data set, that cannot be scored.
    """
    _check_options(protocol, split_seed, folds, hold_out_device, drop_shared_patients)
    rows = _Rows.of(dataset, clips)
    notes: list[str] = []
    test: _Rows | None
    if protocol == "recording":
        return _by_recording(clips.task, rows, split_seed, folds)
    if protocol == "official":
        train, test = _official(dataset, clips.task, rows, drop_shared_patients, notes)
    elif protocol == "device":
        train, test = _by_device(dataset, rows, hold_out_device, notes)
    else:
        train, test = rows, None
    labels = _scored(clips.task, protocol, train, test, notes)
    train, test = train.of_classes(labels), test and test.of_classes(labels)
    classes = tuple(clips.task.classes[i] for i in labels)
    found = next((d for d in _divisions(train, test, split_seed) if d.has(labels)), None)
    if found is None:
        raise UserError(
            f"no division of '{dataset.root}' found that has all of {', '.join(classes)} on every "
            "side: too few patients; try another --split-seed, or a task with fewer classes"
        )
    if found.state != split_seed:
        notes.append(
            f"with split seed {split_seed} a class is missing from a side: random state "
            f"{found.state} is used instead"
        )
    return Split(
        protocol,
        clips.task.name,
        split_seed,
        tuple(Fold(a.stems(), b.stems()) for a, b in found.inner[:folds]),
        found.test.stems(),
        classes,
        tuple(notes),
    )


@dataclass(frozen=True)
class _Rows:
    """One row a clip: the stem and patient of its recording, and its label."""

    stem: npt.NDArray[np.str_]
    patient: npt.NDArray[np.str_]
    label: npt.NDArray[np.int64]

    @classmethod
    def of(cls, dataset: Dataset, clips: Clips) -> _Rows:
        recordings = [dataset.recordings[clip.recording] for clip in clips.clips]
        return cls(
            np.array([r.stem for r in recordings], dtype=np.str_),
            np.array([r.patient for r in recordings], dtype=np.str_),
            np.array([clip.label for clip in clips.clips], dtype=np.int64),
        )

    def at(self, which: npt.NDArray[Any]) -> _Rows:
        """The rows of a mask or of indices."""
        return _Rows(self.stem[which], self.patient[which], self.label[which])

    def of_classes(self, labels: Sequence[int]) -> _Rows:
        return self.at(np.isin(self.label, labels))

    def of_stems(self, stems: Iterable[str]) -> _Rows:
        return self.at(np.isin(self.stem, sorted(stems)))

    def patients(self, label: int) -> int:
        return len(set(self.patient[self.label == label]))

    def has(self, labels: Sequence[int]) -> bool:
        return set(labels) <= set(self.label.tolist())

    def stems(self) -> tuple[str, ...]:
        return tuple(sorted(set(self.stem.tolist())))


@dataclass(frozen=True)
class _Outer:
    """A test side, and pairs of train and validation, as one random state deals them."""

    state: int
    test: _Rows
    inner: list[tuple[_Rows, _Rows]]

    def has(self, labels: Sequence[int]) -> bool:
        """Whether every side has all of `labels`."""
        return all(side.has(labels) for side in (self.test, *itertools.chain(*self.inner)))


def _divisions(train: _Rows, test: _Rows | None, split_seed: int) -> Iterator[_Outer]:
    """In the order in which they are tried; a given `test` stays as it is."""
    for state in _states(split_seed):
        pool, held_out = (train, test) if test else _first_fold(train, state)
        yield _Outer(state, held_out, list(_group_folds(pool, INNER_FOLDS, state)))


def _check_options(
    protocol: str, split_seed: int, folds: int, device: str | None, drop_shared: bool
) -> None:
    if protocol not in PROTOCOLS:
        raise UserError(f"unknown protocol '{protocol}': {nearest(protocol, PROTOCOLS)}")
    if not 1 <= folds <= INNER_FOLDS:
        raise UserError(f"--folds {folds}: there are 1 to {INNER_FOLDS} inner folds")
    if not 0 <= split_seed < 2**32:
        raise UserError(f"--split-seed {split_seed} is outside 0 to {2**32 - 1}")
    if device is not None and protocol != "device":
        raise UserError(f"--hold-out-device needs --protocol device, not '{protocol}'")
    if drop_shared and protocol != "official":
        raise UserError(f"--drop-shared-patients needs --protocol official, not '{protocol}'")


def _states(split_seed: int) -> Iterator[int]:
    """The seed itself, then a fixed sequence that follows from it."""
    yield split_seed
    more = np.random.SeedSequence(split_seed).generate_state(_RANDOM_STATES - 1)
    yield from (int(state) for state in more)


def _group_folds(rows: _Rows, folds: int, state: int) -> Iterator[tuple[_Rows, _Rows]]:
    stems, first, recording = np.unique(rows.stem, return_index=True, return_inverse=True)
    labels = np.array([np.bincount(rows.label[recording == i]).argmax() for i in range(len(stems))])
    if np.bincount(labels).max() < folds:
        labels = np.zeros_like(labels)  # too few of each to be spread, which sklearn refuses
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=state)
    with warnings.catch_warnings():
        # Whether every side has every class is checked on the clips, by the caller.
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        for one, other in splitter.split(labels, labels, rows.patient[first]):
            yield rows.at(np.isin(recording, one)), rows.at(np.isin(recording, other))


def _first_fold(rows: _Rows, state: int) -> tuple[_Rows, _Rows]:
    return next(_group_folds(rows, OUTER_FOLDS, state))


def _scored(
    task: Task, protocol: str, train: _Rows, test: _Rows | None, notes: list[str]
) -> list[int]:
    """The classes with enough patients for every side; the others are named in `notes`."""
    needed = OUTER_FOLDS if test is None else INNER_FOLDS
    labels: list[int] = []
    left: dict[str, list[str]] = {}
    for label, name in enumerate(task.classes):
        count, held_out = train.patients(label), None if test is None else test.patients(label)
        if count >= needed and held_out != 0:
            labels.append(label)
        elif count == 0 and not held_out:
            left.setdefault("none in this data set", []).append(name)
        elif held_out == 0:
            left.setdefault("left out, no patient on the test side", []).append(name)
        else:
            where = "" if test is None else " to train on"
            reason = f"left out, fewer than {needed} patients{where}"
            of_whom = amount(int((train.label == label).sum()), task.unit, count)
            left.setdefault(reason, []).append(f"{name} ({of_whom})")
    reasons = [f"{join_names(names, len(task.classes))}: {why}" for why, names in left.items()]
    if len(labels) < 2:
        raise UserError(
            f"task '{task.name}' cannot be scored with protocol '{protocol}' on this data, because "
            f"fewer than two classes remain ({'; '.join(reasons)}): choose another task or protocol"
        )
    notes += reasons
    return labels


def _by_recording(task: Task, rows: _Rows, split_seed: int, folds: int) -> Split:
    stems = np.array(rows.stems(), dtype=np.str_)
    if len(stems) < OUTER_FOLDS:
        raise UserError(f"{len(stems)} recordings cannot be divided 80/20: at least {OUTER_FOLDS}")
    labels = [label for label in range(len(task.classes)) if label in rows.label]
    if len(labels) < 2:
        raise UserError(
            f"task '{task.name}' cannot be scored: all recordings are {task.classes[labels[0]]}"
        )
    notes = [f"{n}: none in this data set" for i, n in enumerate(task.classes) if i not in labels]
    shuffled = np.random.default_rng(split_seed).permutation(stems)
    blocks = np.array_split(shuffled, OUTER_FOLDS)[:folds]
    pairs = [(sorted(set(stems.tolist()) - set(b.tolist())), sorted(b.tolist())) for b in blocks]
    for number, pair in enumerate(pairs):
        for side, name in zip(pair, ("training", "validation"), strict=True):
            there = set(rows.of_stems(side).label.tolist())
            absent = [task.classes[label] for label in labels if label not in there]
            if absent:
                where = f"fold {number}'s {name}" if folds > 1 else name
                notes.append(f"{', '.join(absent)}: no recording in {where}")
    return Split(
        "recording",
        task.name,
        split_seed,
        tuple(Fold(tuple(train), tuple(validation)) for train, validation in pairs),
        None,
        tuple(task.classes[label] for label in labels),
        tuple(notes),
    )


def _official(
    dataset: Dataset, task: Task, rows: _Rows, drop_shared: bool, notes: list[str]
) -> tuple[_Rows, _Rows]:
    if task.name != "cycles":
        raise UserError(
            f"protocol 'official' divides breathing cycles, and cannot score the task "
            f"'{task.name}': its test side has no Pneumonia, LRTI or Asthma; use --task cycles, or "
            "--protocol patient"
        )
    side = {r.stem: r.official for r in dataset.recordings}
    train, test = (
        rows.of_stems(stem for stem, where in side.items() if where == name)
        for name in ("train", "test")
    )
    if not len(train.stem) or not len(test.stem):
        raise UserError(
            f"'{dataset.root}' has no official split: ICBHI_challenge_train_test.txt must name "
            "recordings of train and test; add it, or use --protocol patient"
        )
    if unknown := [stem for stem in rows.stems() if side[stem] is None]:
        notes.append(f"{len(unknown)} recordings left out: not in the official split")
    if shared := sorted(set(train.patient) & set(test.patient)):
        is_shared = np.isin(train.patient, shared)
        lost = len(set(train.stem[is_shared]))
        who = f"patients {', '.join(shared)} stand on both sides of the official split"
        if drop_shared:
            train = train.at(~is_shared)
            notes.append(f"{who}: their {lost} training recordings are left out")
        else:
            notes.append(f"{who}: the test side leaks; --drop-shared-patients leaves them out")
    return train, test


def _by_device(
    dataset: Dataset, rows: _Rows, device: str | None, notes: list[str]
) -> tuple[_Rows, _Rows]:
    devices = sorted({r.device for r in dataset.recordings})
    if device is None:
        raise UserError(f"--protocol device needs --hold-out-device, one of {', '.join(devices)}")
    if device not in devices:
        raise UserError(f"unknown device '{device}': {nearest(device, devices)}")
    if len(devices) == 1:
        raise UserError(f"all recordings were made with {device}: nothing is left to train on")
    test = rows.of_stems(r.stem for r in dataset.recordings if r.device == device)
    if not len(test.stem):
        raise UserError(f"no recording of {device} belongs to the task: choose another device")
    others = rows.at(~np.isin(rows.stem, test.stem))
    both = np.isin(others.patient, test.patient)
    if both.any():
        count, who = len(set(others.stem[both])), len(set(others.patient[both]))
        notes.append(
            f"{amount(count, 'recording', who)} left out: made with another device than {device}, "
            "but the patient is on the test side"
        )
    return others.at(~both), test
