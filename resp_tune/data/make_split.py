"""Protocols: how a task's recordings are divided into training, validation and test split."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from resp_tune.common.text import amount, shorten
from resp_tune.data.dataset import Dataset, refusal
from resp_tune.data.split import Fold, Split
from resp_tune.data.split_spec import INNER_FOLDS, OUTER_FOLDS, SplitSpec
from resp_tune.data.tasks import Clips, Task
from resp_tune.errors import UserError, nearest

_RANDOM_STATES = 200


def make_split(dataset: Dataset, clips: Clips, spec: SplitSpec) -> Split:
    """Divide the recordings of `clips` into training, validation and test split.

    `patient`: fold 0 of a `StratifiedGroupKFold` by patient in 5 is the test split; the rest is
    divided in 4 the same way, and the first `folds` of these are the validation splits. With
    several `outer_folds`, fold `test_fold` of the same 5 is the test split, or there is none.
    `official`: the challenge's test split; validation by patient within its training split.
    `drop_shared_patients` takes the patients of both out of training, so that the test split
    remains the published one. `recording`: the notebook's random 80/20, patients ignored, no test
    split. `device`: the recordings of `hold_out_device` are the test split, its patients leave
    training.

    In the task `cycles` a recording is stratified by its commonest label. (Over the cycles
    themselves no two patients are alike, and `StratifiedGroupKFold`, which shuffles among equals
    only, would give nearly the same split for every seed.) If a class is missing from a split, the
    next of a fixed sequence of random states is tried.
    Raises `UserError` for a pair of task and protocol, or a data set, that cannot be scored.
    """
    train, test, notes = Rows.of(clips), None, list[str]()
    whole = spec.outer_folds > 1 and spec.test_fold is None
    if spec.protocol == "recording":
        return _by_recording(dataset, clips.task, train, spec)
    if spec.protocol == "official":
        train, test = _official(dataset, clips.task, train, spec.drop_shared_patients, notes)
    elif spec.protocol == "device":
        train, test = _by_device(dataset, train, spec.hold_out_device, notes)
    elif spec.protocol != "patient":
        raise ValueError(f"make_split lacks the protocol '{spec.protocol}'")
    labels, absent = _scorable_classes(clips.task, train, test)
    if len(labels) < 2:
        raise refusal(
            f"task '{clips.task.name}' cannot be scored with protocol '{spec.protocol}' on this "
            f"data, because fewer than two classes remain ({'; '.join(absent)}): choose another "
            "task or protocol",
            dataset.problems,
        )
    notes += absent
    train = train.at(np.isin(train.label, labels))
    test = test and test.at(np.isin(test.label, labels))
    classes = tuple(clips.task.classes[i] for i in labels)
    outer: tuple[Rows, Rows] | None = None
    if spec.test_fold is not None:
        outer = _outer_fold(train, labels, spec, notes)
    pool, held_out = outer or (train, test)
    candidates = _candidates(pool, held_out, spec.split_seed, whole=whole)
    chosen = next((c for c in candidates if c.has(labels)), None)
    if chosen is None or (spec.test_fold is not None and outer is None):
        raise refusal(
            f"no split of '{dataset.root}' has all of {', '.join(classes)} in training, validation "
            "and test: too few patients; try another split_seed, or a task with fewer classes",
            dataset.problems,
        )
    if chosen.state != spec.split_seed:
        notes.append(
            f"with split seed {spec.split_seed} a class is missing from a split: random state "
            f"{chosen.state} is used instead"
        )
    folds = tuple(Fold(a.stems(), b.stems()) for a, b in chosen.folds[: spec.folds])
    task, stems = clips.task.name, None if chosen.test is None else chosen.test.stems()
    return Split(spec.protocol, task, spec.split_seed, folds, stems, classes, tuple(notes))


def reshuffled_folds(rows: Rows, folds: int, split_seed: int, trial: int) -> tuple[Fold, ...]:
    """Divide the clips that a search may use as trial number `trial` alone does.

    The folds are drawn like those of the protocol `patient`, from `split_seed` and the trial's
    number (reshuffled resampling, Nagler et al., NeurIPS 2024). If no random state of a fixed
    sequence has every label in every split, the last one is used.
    """
    labels = sorted(set(rows.label.tolist()))
    states = np.random.SeedSequence([split_seed, trial]).generate_state(_RANDOM_STATES)
    for state in states.tolist():
        drawn = list(_group_folds(rows, INNER_FOLDS, state))[:folds]
        if all(part.has(labels) for part in itertools.chain(*drawn)):
            break
    return tuple(Fold(a.stems(), b.stems()) for a, b in drawn)


@dataclass(frozen=True)
class Rows:
    """One row per clip: the stem and person of its recording, and its label.

    A person is a patient, or several who have a sound in common.
    """

    stem: npt.NDArray[np.str_]
    patient: npt.NDArray[np.str_]
    label: npt.NDArray[np.int64]

    @classmethod
    def of(cls, clips: Clips) -> Rows:
        """Return the rows of `clips`."""
        recordings = [clip.recording for clip in clips.clips]
        return cls(
            np.array([r.stem for r in recordings], dtype=np.str_),
            np.array([r.person for r in recordings], dtype=np.str_),
            np.array([clip.label for clip in clips.clips], dtype=np.int64),
        )

    def at(self, which: npt.NDArray[Any]) -> Rows:
        """Return the rows of a mask or of indices."""
        return Rows(self.stem[which], self.patient[which], self.label[which])

    def patients(self, label: int) -> int:
        """Return the number of persons with a clip of this label."""
        return len(set(self.patient[self.label == label]))

    def has(self, labels: Sequence[int]) -> bool:
        """Return whether every one of `labels` occurs."""
        return set(labels) <= set(self.label.tolist())

    def stems(self) -> tuple[str, ...]:
        """Return the recordings, sorted."""
        return tuple(sorted(set(self.stem.tolist())))


@dataclass(frozen=True)
class _Candidate:
    """The test split and the pairs of training and validation split of one random state."""

    state: int
    test: Rows | None
    folds: list[tuple[Rows, Rows]]

    def has(self, labels: Sequence[int]) -> bool:
        """Tell whether every split has all of `labels`."""
        tested = [] if self.test is None else [self.test]
        return all(rows.has(labels) for rows in (*tested, *itertools.chain(*self.folds)))


def _random_states(split_seed: int) -> Iterator[int]:
    """Yield the seed itself, then a fixed sequence of states from it."""
    more = np.random.SeedSequence(split_seed).generate_state(_RANDOM_STATES - 1)
    yield from (split_seed, *more.tolist())


def _candidates(
    train: Rows, test: Rows | None, split_seed: int, *, whole: bool
) -> Iterator[_Candidate]:
    """Yield a candidate for each of the seed's random states.

    A given `test` is kept; if the `whole` of `train` is searched, there is none.
    """
    for state in _random_states(split_seed):
        pool, held_out = train, test
        if held_out is None and not whole:
            pool, held_out = next(_group_folds(train, OUTER_FOLDS, state))
        yield _Candidate(state, held_out, list(_group_folds(pool, INNER_FOLDS, state)))


def _outer_fold(
    rows: Rows, labels: Sequence[int], spec: SplitSpec, notes: list[str]
) -> tuple[Rows, Rows] | None:
    """Return what a search may use, and the test split, of the outer fold `spec.test_fold`.

    All outer folds are of one random state, the first in which each test split has all `labels`;
    without one, None is returned.
    """
    if spec.test_fold is None:
        raise ValueError("this split has no outer fold")
    for state in _random_states(spec.split_seed):
        folds = list(itertools.islice(_group_folds(rows, OUTER_FOLDS, state), spec.outer_folds))
        if all(test.has(labels) for _, test in folds):
            if state != spec.split_seed:
                notes.append(
                    f"with split seed {spec.split_seed} a class is missing from an outer test "
                    f"fold: random state {state} is used instead"
                )
            return folds[spec.test_fold]
    return None


def _group_folds(rows: Rows, folds: int, state: int) -> Iterator[tuple[Rows, Rows]]:
    stems, first, recording = np.unique(rows.stem, return_index=True, return_inverse=True)
    labels = np.array([np.bincount(rows.label[recording == i]).argmax() for i in range(len(stems))])
    if np.bincount(labels).max() < folds:
        labels = np.zeros_like(labels)  # too few of each to be spread, which sklearn refuses
    from sklearn.model_selection import StratifiedGroupKFold  # workers make no splits

    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=state)
    with warnings.catch_warnings():
        # Whether every split has every class is checked on the clips, by the caller.
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        for one, other in splitter.split(labels, labels, rows.patient[first]):
            yield rows.at(np.isin(recording, one)), rows.at(np.isin(recording, other))


def _scorable_classes(task: Task, train: Rows, test: Rows | None) -> tuple[list[int], list[str]]:
    """Return the classes with enough patients for every split, and a line for the others."""
    needed = OUTER_FOLDS if test is None else INNER_FOLDS
    labels: list[int] = []
    dropped: dict[str, list[str]] = {}
    few = f"left out, fewer than {needed} patients{'' if test is None else ' to train on'}"
    for label, name in enumerate(task.classes):
        patients, tested = train.patients(label), None if test is None else test.patients(label)
        if patients >= needed and tested != 0:
            labels.append(label)
        elif patients == 0 and not tested:
            dropped.setdefault("none in this data set", []).append(name)
        elif tested == 0:
            dropped.setdefault("left out, no patient in the test split", []).append(name)
        else:
            size = amount(int((train.label == label).sum()), task.unit, patients)
            dropped.setdefault(few, []).append(f"{name} ({size})")
    return labels, [f"{', '.join(names)}: {reason}" for reason, names in dropped.items()]


def _by_recording(dataset: Dataset, task: Task, rows: Rows, spec: SplitSpec) -> Split:
    stems = np.array(rows.stems(), dtype=np.str_)
    if len(stems) < OUTER_FOLDS:
        few = f"{len(stems)} recordings cannot be divided 80/20: at least {OUTER_FOLDS} are needed"
        raise refusal(few, dataset.problems)
    labels = [label for label in range(len(task.classes)) if label in rows.label]
    if len(labels) < 2:
        one = f"task '{task.name}' cannot be scored: all recordings are {task.classes[labels[0]]}"
        raise refusal(one, dataset.problems)
    notes = [f"{n}: none in this data set" for i, n in enumerate(task.classes) if i not in labels]
    shuffled = np.random.default_rng(spec.split_seed).permutation(stems)
    folds = []
    for number, block in enumerate(np.array_split(shuffled, OUTER_FOLDS)[: spec.folds]):
        validation = sorted(block.tolist())
        fold = Fold(tuple(sorted(set(stems.tolist()) - set(validation))), tuple(validation))
        folds.append(fold)
        for members, name in ((fold.train, "training"), (fold.validation, "validation")):
            present = set(rows.label[np.isin(rows.stem, members)].tolist())
            absent = [task.classes[label] for label in labels if label not in present]
            if absent:
                name = f"fold {number}'s {name}" if spec.folds > 1 else name
                notes.append(f"{', '.join(absent)}: no recording in {name}")
    classes = tuple(task.classes[label] for label in labels)
    return Split("recording", task.name, spec.split_seed, tuple(folds), None, classes, tuple(notes))


def _official(
    dataset: Dataset, task: Task, rows: Rows, drop_shared: bool, notes: list[str]
) -> tuple[Rows, Rows]:
    if task.name != "cycles":
        raise UserError(
            "protocol 'official' divides breathing cycles, and cannot score the task "
            f"'{task.name}': its test split has no Pneumonia, LRTI or Asthma; use the task cycles, "
            "or the protocol patient"
        )
    split_of = {r.stem: r.official for r in dataset.recordings}
    official = np.array([split_of[stem] or "" for stem in rows.stem.tolist()], dtype=np.str_)
    train, test = rows.at(official == "train"), rows.at(official == "test")
    if not len(train.stem) or not len(test.stem):
        raise refusal(
            f"'{dataset.root}' has no official split: ICBHI_challenge_train_test.txt must name "
            "recordings of train and test; add it, or use the protocol patient",
            dataset.problems,
            "official",
            "not read",
        )
    if unknown := [stem for stem in rows.stems() if split_of[stem] is None]:
        notes.append(f"{len(unknown)} recordings left out: not in the official split")
    if shared := sorted(set(train.patient) & set(test.patient)):
        is_shared = np.isin(train.patient, shared)
        who = f"patients {', '.join(shared)} are in training and test of the official split"
        if drop_shared:
            dropped = len(set(train.stem[is_shared]))
            train = train.at(~is_shared)
            notes.append(f"{who}: their {dropped} training recordings are left out")
        else:
            notes.append(f"{who}: the test split leaks; drop_shared_patients avoids it")
    return train, test


def _by_device(
    dataset: Dataset, rows: Rows, device: str | None, notes: list[str]
) -> tuple[Rows, Rows]:
    device_of = {r.stem: r.device for r in dataset.recordings}
    devices = sorted(set(device_of.values()))
    if device is None:
        raise UserError(f"protocol 'device' needs hold_out_device, one of {', '.join(devices)}")
    if device not in devices:
        unknown = f"unknown device '{shorten(device)}': {nearest(device, devices)}"
        raise refusal(unknown, dataset.problems)
    if len(devices) == 1:
        only = f"all recordings were made with {device}: nothing is left to train on"
        raise refusal(only, dataset.problems)
    held_out = np.array([device_of[stem] == device for stem in rows.stem.tolist()])
    test, others = rows.at(held_out), rows.at(~held_out)
    if not len(test.stem):
        none = f"no recording of {device} belongs to the task: choose another device"
        raise refusal(none, dataset.problems)
    shared = np.isin(others.patient, test.patient)
    if shared.any():
        size = amount(len(set(others.stem[shared])), "recording", len(set(others.patient[shared])))
        notes.append(
            f"{size} left out: made with another device than {device}, but the patient is in the "
            "test split"
        )
    return others.at(~shared), test
