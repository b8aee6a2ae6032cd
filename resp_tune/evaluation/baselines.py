"""Predict without listening: from device, location, age and sex, or by looking up the patient.

A model that scores no better than these has learnt who was recorded with what, not what lungs
sound like.
"""

from __future__ import annotations

import os
import threading
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from joblib import Parallel, cpu_count, delayed, parallel_config
from joblib.externals.loky import get_reusable_executor
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import StratifiedGroupKFold

from resp_tune.common.text import plural
from resp_tune.data.dataset import Dataset, Recording
from resp_tune.data.protocols import make_split
from resp_tune.data.split import Split
from resp_tune.data.split_spec import SplitSpec
from resp_tune.data.tasks import Clip, Clips, get_task, make_clips
from resp_tune.errors import UserError
from resp_tune.training.metrics import Floats, Labels, compute_metrics, majority_accuracy

FOLDS = 5
ADULT = 18.0  # years
COLUMNS = {"device": ("device",), "all": ("device", "location", "age", "sex")}
SCORES = ("balanced_accuracy", "macro_f1")
TREES = 200
_MISSING_AGE = 60.0  # years; the one that is missing in ICBHI is of an adult


def no_audio_baselines(clips: Clips, *, seeds: int = 5, jobs: int | None = None) -> dict[str, Any]:
    """Score random forests on the recordings' metadata, cross-validated by patient in 5 folds.

    Returns `{"majority_accuracy": a, "device": {"balanced_accuracy": b, "macro_f1": f}, "all":
    {…}}`, all in 0…1. Out-of-fold predictions of a seed are pooled before they are scored; scores
    are means over the seeds 0 to `seeds − 1`. Each clip is a row, with its recording's metadata.
    `jobs` is the number of processes, by default one a core. Raises the `UserError` of
    `check_enough`.
    """
    check_enough(clips)
    table = _Metadata(clips.clips)
    # Small sets: there cannot be more folds than patients, nor than clips of the largest class.
    folds = min(FOLDS, len(set(table.patients.tolist())), int(np.bincount(table.labels).max()))
    splits = [split for seed in range(seeds) for split in _splits(table, folds, seed)]
    features = {name: table.features(columns) for name, columns in COLUMNS.items()}
    # Processes, because a small tree is mostly Python: threads are slower than none.
    try:
        with parallel_config("loky", initializer=_end_with, initargs=(os.getpid(),)):
            predictions = iter(
                Parallel(n_jobs=jobs or cpu_count())(
                    delayed(_forest)(x, table.labels, table.weights, train, test, seed)
                    for x in features.values()
                    for seed, train, test in splits
                )
            )
    finally:
        get_reusable_executor().shutdown()  # their memory would be kept for five minutes
    scores: dict[str, Any] = {"majority_accuracy": majority_accuracy(table.labels)}
    for name in features:
        pooled = np.empty((seeds, len(table.labels)), dtype=np.int64)
        for seed, _, test in splits:
            pooled[seed, test] = next(predictions)
        scores[name] = _mean([_scores(table.labels, row) for row in pooled])
    return scores


def _end_with(parent: int) -> None:
    """End this process when its parent has ended, which may have been killed."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1.0)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def check_enough(clips: Clips) -> None:
    """Raise `UserError` for fewer than two patients, or no class with two clips."""
    patients = {clip.recording.patient for clip in clips.clips}
    if len(patients) < 2:
        raise UserError(
            f"the task '{clips.task.name}' has the clips of {plural(len(patients), 'patient')} "
            "here, but the no-audio baselines need at least two patients: give more recordings"
        )
    if max(Counter(clip.label for clip in clips.clips).values()) < 2:
        raise UserError(
            f"the task '{clips.task.name}' has one clip of each class here, but the no-audio "
            "baselines need a class with at least two clips: give more recordings"
        )


@dataclass(frozen=True)
class BaselinePredictions:
    """Predictions of the forests for the held-out clips, in the order of `Split.select_clips`.

    `labels` are indices of `Split.classes`; `by_columns[name]` holds the class that each seed's
    forest predicts, int `[seeds, clips]`; `majority` is the most frequent class of training.
    """

    stems: tuple[str, ...]
    labels: Labels
    by_columns: dict[str, Labels]
    majority: int

    def scores(self) -> dict[str, Any]:
        """Return scores as `no_audio_baselines`, with the majority class of training."""
        return {
            "majority_accuracy": float(np.mean(self.labels == self.majority)),
            **{
                name: _mean([_scores(self.labels, row) for row in by_seed])
                for name, by_seed in self.by_columns.items()
            },
        }


def predict_baselines(clips: Clips, split: Split, *, seeds: int = 5) -> BaselinePredictions:
    """Fit the same forests on training and validation clips, and predict the test split.

    Without a test split, fit on training clips and predict validation, both of the first fold.
    """
    fold = split.folds[0]
    if split.test is None:
        fitted, held_out = fold.train, fold.validation
    else:
        fitted, held_out = fold.train + fold.validation, split.test
    known, unseen = split.select_clips(clips, fitted), split.select_clips(clips, held_out)
    if not known or not unseen:
        raise UserError("the split has no clips of this data set: give the set it was made from")
    table = _Metadata(known + unseen)
    train, test = np.arange(len(known)), np.arange(len(known), len(known) + len(unseen))
    by_columns = {}
    for name, columns in COLUMNS.items():
        x = table.features(columns)
        by_columns[name] = np.stack(
            [_forest(x, table.labels, table.weights, train, test, seed) for seed in range(seeds)]
        )
    return BaselinePredictions(
        stems=tuple(clip.recording.stem for clip in unseen),
        labels=table.labels[test],
        by_columns=by_columns,
        majority=int(np.bincount(table.labels[train]).argmax()),
    )


def patient_lookup(dataset: Dataset, clips: Clips, *, seeds: int = 20) -> dict[str, float]:
    """Score a lookup of the patient on the random 80/20 split by recording, without audio.

    A held-out clip gets the commonest label of its patient's training clips, or of all training
    clips for a new patient. Returns means over the seeds of `accuracy`, `macro_f1` and
    `balanced_accuracy`.
    """
    by_seed = []
    for seed in range(seeds):
        split = make_split(dataset, clips, SplitSpec("recording", split_seed=seed))
        train = split.select_clips(clips, split.folds[0].train)
        held_out = split.select_clips(clips, split.folds[0].validation)
        by_patient: dict[str, Counter[int]] = {}
        for clip in train:
            by_patient.setdefault(clip.recording.patient, Counter())[clip.label] += 1
        everyone = Counter(clip.label for clip in train)
        predicted = np.array(
            [_commonest(by_patient.get(clip.recording.patient, everyone)) for clip in held_out]
        )
        labels = np.array([clip.label for clip in held_out])
        by_seed.append(_scores(labels, predicted, ("accuracy", *SCORES)))
    return _mean(by_seed)


def is_controlled(recording: Recording) -> bool:
    """Return whether it is of a child and was made with the Meditron."""
    child = recording.age is not None and recording.age < ADULT
    return child and recording.device == "Meditron"


def controlled_clips(dataset: Dataset) -> Clips:
    """Return the clips of children recorded with the Meditron, labelled healthy or sick.

    In ICBHI all Healthy recordings are of that device and nearly all of children, so within this
    group neither device nor age predicts who is sick: 35 recordings of 26 patients against 40 of
    23.
    """
    clips = make_clips(get_task("healthy-sick"), dataset)
    kept = tuple(clip for clip in clips.clips if is_controlled(clip.recording))
    reason = f"{len(clips.clips) - len(kept)} recordings left out: adults, or another device"
    return Clips(clips.task, kept, (*clips.dropped, reason))


class _Metadata:
    """Clips as rows of what is known without audio, with labels, patients and weights."""

    def __init__(self, clips: Sequence[Clip]) -> None:
        self._recordings = [clip.recording for clip in clips]
        self.labels: Labels = np.array([clip.label for clip in clips], dtype=np.int64)
        self.patients = np.array([r.patient for r in self._recordings], dtype=np.str_)
        counts = Counter(self.patients.tolist())
        # A patient with sixty recordings should not weigh sixty times as much as one with one.
        self.weights: Floats = np.array([1 / counts[p] for p in self.patients.tolist()])

    def features(self, names: Iterable[str]) -> Floats:
        """Return float64 `[clips, columns]`: age in years, the others one-hot."""
        parts = []
        for name in names:
            values = [_value(recording, name) for recording in self._recordings]
            if name == "age":
                parts.append(np.array(values, dtype=np.float64)[:, None])
            else:
                text = np.array(values, dtype=np.str_)
                parts.append((text[:, None] == np.unique(text)[None, :]).astype(np.float64))
        return np.concatenate(parts, axis=1)


def _value(recording: Recording, name: str) -> str | float:
    if name == "age":
        return _MISSING_AGE if recording.age is None else recording.age
    return str(getattr(recording, name))


def _splits(table: _Metadata, folds: int, seed: int) -> Iterator[tuple[int, Labels, Labels]]:
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # A class with fewer clips than folds is predicted wrongly by the folds that lack it, as the
        # score for eight classes is meant to show.
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        for train, test in splitter.split(table.labels, table.labels, table.patients):
            yield seed, train, test


def _forest(
    features: Floats,
    labels: Labels,
    weights: Floats,
    train: Labels,
    test: Labels,
    seed: int,
) -> Labels:
    forest = RandomForestClassifier(
        TREES, min_samples_leaf=3, class_weight="balanced", random_state=seed, n_jobs=1
    )
    forest.fit(features[train], labels[train], sample_weight=weights[train])
    # Many clips have the same metadata: each is predicted once.
    distinct, rows = np.unique(features[test], axis=0, return_inverse=True)
    predicted: Labels = forest.predict(distinct)[rows.ravel()]
    return predicted


def _scores(labels: Labels, predicted: Labels, names: Sequence[str] = SCORES) -> dict[str, float]:
    """Return metrics of hard predictions, over the classes that occur in `labels`."""
    one_hot = np.eye(1 + max(labels.max(), predicted.max()))[predicted]
    return compute_metrics(labels, one_hot, names)


def _mean(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([one[key] for one in scores])) for key in scores[0]}


def _commonest(labels: Counter[int]) -> int:
    return min(labels, key=lambda label: (-labels[label], label))
