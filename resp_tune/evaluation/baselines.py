"""What can be predicted without listening: from device, location, age and sex, or by patient.

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
import numpy.typing as npt
from joblib import Parallel, cpu_count, delayed, parallel_config
from joblib.externals.loky import get_reusable_executor
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import StratifiedGroupKFold

from resp_tune.common.text import plural
from resp_tune.data.dataset import Dataset, Recording
from resp_tune.data.protocols import make_split
from resp_tune.data.split import Split
from resp_tune.data.split_spec import SplitSpec
from resp_tune.data.tasks import Clip, Clips, get_task, make_clips
from resp_tune.errors import UserError

FOLDS = 5
ADULT = 18.0  # years
COLUMNS = {"device": ("device",), "all": ("device", "location", "age", "sex")}
TREES = 200
_MISSING_AGE = 60.0  # years; the one that is missing in ICBHI is an adult's

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def no_audio_baselines(clips: Clips, *, seeds: int = 5, jobs: int | None = None) -> dict[str, Any]:
    """Scores of forests that see a recording's data sheet only, by patient in 5 folds.

    `{"majority_accuracy": a, "device": {"balanced_accuracy": b, "macro_f1": f}, "all": {…}}`, all
    in 0…1. Out-of-fold predictions of a seed are pooled before they are scored; scores are means
    over the seeds 0 to `seeds − 1`. Of `cycles` each clip is a row with its recording's columns.
    `jobs` processes, None: one a core. Raises the `UserError` of `check_enough`.
    """
    check_enough(clips)
    sheet = _Sheet(clips.clips)
    # Small sets: there cannot be more folds than patients, nor than clips of the largest class.
    folds = min(FOLDS, len(set(sheet.patients.tolist())), int(np.bincount(sheet.labels).max()))
    splits = [split for seed in range(seeds) for split in _splits(sheet, folds, seed)]
    features = {name: sheet.columns(columns) for name, columns in COLUMNS.items()}
    # Processes, because a small tree is mostly Python: threads are slower than none.
    try:
        with parallel_config("loky", initializer=_end_with, initargs=(os.getpid(),)):
            answers = iter(
                Parallel(n_jobs=jobs or cpu_count())(
                    delayed(_forest)(table, sheet.labels, sheet.weights, train, test, seed)
                    for table in features.values()
                    for seed, train, test in splits
                )
            )
    finally:
        get_reusable_executor().shutdown()  # their memory would be kept for five minutes
    scores: dict[str, Any] = {"majority_accuracy": float(np.bincount(sheet.labels).max())}
    scores["majority_accuracy"] /= len(sheet.labels)
    for name in features:
        pooled = np.empty((seeds, len(sheet.labels)), dtype=np.int64)
        for seed, _, test in splits:
            pooled[seed, test] = next(answers)
        scores[name] = _mean([_scores(sheet.labels, row) for row in pooled])
    return scores


def _end_with(parent: int) -> None:
    """Let this process end with its parent, which may be killed and then cannot say so."""

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
            "here: what can be told without audio needs at least two patients; give more recordings"
        )
    if max(Counter(clip.label for clip in clips.clips).values()) < 2:
        raise UserError(
            f"the task '{clips.task.name}' has one clip of each class here: what can be told "
            "without audio needs a class with at least two clips; give more recordings"
        )


@dataclass(frozen=True)
class BaselinePredictions:
    """What the forests say of the clips of the held-out side, in the order of `Split.select_clips`.

    `stems` and `labels` are those of the clips, labels as indices of `Split.classes`;
    `by_columns[name]` holds the class answered by each seed's forest, int `[seeds, clips]`;
    `majority` is the most frequent class of the side fitted on.
    """

    stems: tuple[str, ...]
    labels: Integers
    by_columns: dict[str, Integers]
    majority: int

    def scores(self) -> dict[str, Any]:
        """As `no_audio_baselines`, with the majority class of the side fitted on."""
        return {
            "majority_accuracy": float(np.mean(self.labels == self.majority)),
            **{
                name: _mean([_scores(self.labels, row) for row in by_seed])
                for name, by_seed in self.by_columns.items()
            },
        }


def predict_baselines(clips: Clips, split: Split, *, seeds: int = 5) -> BaselinePredictions:
    """The same forests, fitted on the train and validation side and asked about the test side.

    Without a test side they are fitted on train alone and asked about validation, of the first
    fold.
    """
    fold = split.folds[0]
    if split.test is None:
        fitted, held_out = fold.train, fold.validation
    else:
        fitted, held_out = fold.train + fold.validation, split.test
    known = split.select_clips(clips, fitted)
    asked = split.select_clips(clips, held_out)
    if not known or not asked:
        raise UserError("the sides hold no clips of this data set: give the set they were made of")
    sheet = _Sheet(known + asked)
    train, test = np.arange(len(known)), np.arange(len(known), len(known) + len(asked))

    def answers(features: Floats) -> Integers:
        forests = (
            _forest(features, sheet.labels, sheet.weights, train, test, seed)
            for seed in range(seeds)
        )
        return np.stack(list(forests))

    return BaselinePredictions(
        stems=tuple(clip.recording.stem for clip in asked),
        labels=sheet.labels[test],
        by_columns={name: answers(sheet.columns(columns)) for name, columns in COLUMNS.items()},
        majority=int(np.bincount(sheet.labels[train]).argmax()),
    )


def patient_lookup(dataset: Dataset, clips: Clips, *, seeds: int = 20) -> dict[str, float]:
    """What a table of patients scores on the random 80/20 division by recording, without audio.

    A held-out clip gets the commonest label of its patient's training clips, a patient not seen
    the commonest of all. Means over the seeds of `accuracy`, `macro_f1`, `balanced_accuracy`.
    """
    by_seed = []
    for seed in range(seeds):
        split = make_split(dataset, clips, SplitSpec("recording", split_seed=seed))
        fold = split.folds[0]
        train = split.select_clips(clips, fold.train)
        asked = split.select_clips(clips, fold.validation)
        labels: dict[str, Counter[int]] = {}
        for clip in train:
            labels.setdefault(clip.recording.patient, Counter())[clip.label] += 1
        fallback = _commonest(Counter(clip.label for clip in train))
        guesses = [
            _commonest(labels[who]) if (who := clip.recording.patient) in labels else fallback
            for clip in asked
        ]
        truth = np.array([clip.label for clip in asked])
        answer = np.array(guesses)
        accuracy = float(accuracy_score(truth, answer))
        by_seed.append({"accuracy": accuracy, **_scores(truth, answer)})
    return _mean(by_seed)


def is_controlled(recording: Recording) -> bool:
    """Whether it is of a child and was made with the Meditron."""
    child = recording.age is not None and recording.age < ADULT
    return child and recording.device == "Meditron"


def controlled_clips(dataset: Dataset) -> Clips:
    """Healthy or sick among the children recorded with the Meditron, to report beside a headline.

    In ICBHI all Healthy recordings are of that device and nearly all of children, so that within
    this group neither device nor age tells who is sick: 35 recordings of 26 patients against 40 of
    23. Empty for data sets without such recordings.
    """
    clips = make_clips(get_task("healthy-sick"), dataset)
    kept = tuple(clip for clip in clips.clips if is_controlled(clip.recording))
    reason = f"{len(clips.clips) - len(kept)} recordings left out: adults, or another device"
    return Clips(clips.task, kept, (*clips.dropped, reason))


class _Sheet:
    """Clips as rows of what is known without audio: features, labels, patients and weights."""

    def __init__(self, clips: Sequence[Clip]) -> None:
        self._recordings = [clip.recording for clip in clips]
        self.labels: Integers = np.array([clip.label for clip in clips], dtype=np.int64)
        self.patients = np.array([r.patient for r in self._recordings], dtype=np.str_)
        counts = Counter(self.patients.tolist())
        # A patient with sixty recordings should not weigh sixty times as much as one with one.
        self.weights: Floats = np.array([1 / counts[p] for p in self.patients.tolist()])

    def columns(self, names: Iterable[str]) -> Floats:
        """Float64 `[clips, columns]`: age in years as it is, the others one column a value."""
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


def _splits(sheet: _Sheet, folds: int, seed: int) -> Iterator[tuple[int, Integers, Integers]]:
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # A class with fewer clips than folds is predicted wrongly where it is not trained on; that
        # is what the figure for eight classes is meant to say.
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        for train, test in splitter.split(sheet.labels, sheet.labels, sheet.patients):
            yield seed, train, test


def _forest(
    features: Floats,
    labels: Integers,
    weights: Floats,
    train: Integers,
    test: Integers,
    seed: int,
) -> Integers:
    forest = RandomForestClassifier(
        TREES, min_samples_leaf=3, class_weight="balanced", random_state=seed, n_jobs=1
    )
    forest.fit(features[train], labels[train], sample_weight=weights[train])
    # Many clips share one data sheet: each is asked once.
    distinct, where = np.unique(features[test], axis=0, return_inverse=True)
    answers: Integers = forest.predict(distinct)[where.ravel()]
    return answers


def _scores(truth: Integers, answer: Integers) -> dict[str, float]:
    """Over the classes that occur in the truth, as those absent from it cannot be scored."""
    present = np.unique(truth)
    recalls = [np.mean(answer[truth == label] == label) for label in present]
    f1 = f1_score(truth, answer, labels=present, average="macro", zero_division=0)
    return {"balanced_accuracy": float(np.mean(recalls)), "macro_f1": float(f1)}


def _mean(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([one[key] for one in scores])) for key in scores[0]}


def _commonest(labels: Counter[int]) -> int:
    return min(labels, key=lambda label: (-labels[label], label))
