"""Baselines: predict from device, location, age and sex, from band statistics, or by patient.

A model that scores no better than those without audio has learnt who was recorded with what, not
what lungs sound like; one that is no better than a linear model of band statistics has learnt
nothing beyond them. Scores and predictions are computed once for a data set and kept in the cache
folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from resp_tune.common.paths import cache_folder, write_atomically
from resp_tune.common.text import one_line
from resp_tune.data.dataset import Dataset, Recording
from resp_tune.data.make_split import make_split
from resp_tune.data.split import Split
from resp_tune.data.split_spec import SplitSpec
from resp_tune.data.tasks import Clip, Clips, check_enough, get_task, make_clips
from resp_tune.errors import RunError, UserError
from resp_tune.evaluation.band_statistics import (
    BandStatistics,
    load_band_statistics,
    select,
    statistics_key,
)
from resp_tune.evaluation.logistic import fit_logistic
from resp_tune.evaluation.sklearn_internals import draw_bootstraps, predict_forest
from resp_tune.training.datamodule import DataModule
from resp_tune.training.metrics import Floats, Labels, compute_metrics, majority_accuracy

log = logging.getLogger(__name__)

CACHE_FORMAT = 4
FOLDS = 5
ADULT = 18.0  # years
COLUMNS = {"device": ("device",), "all": ("device", "location", "age", "sex")}
AUDIO = "audio_linear"
BASELINES = (*COLUMNS, AUDIO)
SCORES = ("balanced_accuracy", "macro_f1")
TREES = 200
# The inverse strength of the regression's penalty: scikit-learn's default, so that no label of a
# data set has chosen it.
C = 1.0
Cached = TypeVar("Cached")
_MISSING_AGE = 60.0  # years; the one that is missing in ICBHI is of an adult


def load_baselines(
    datamodule: DataModule, jobs: int, report: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Return `score_baselines` of the data set; those of the test split under `test_side`.

    `report` is called after each recording whose band statistics are computed, and after each fold;
    if it raises, nothing is kept.
    """
    scores = load_baseline_scores(datamodule.dataset, datamodule.clips, jobs, report)
    if datamodule.split.test is not None:
        scores["test_side"] = load_baseline_predictions(datamodule).scores()
    return scores


def load_baseline_scores(
    dataset: Dataset,
    clips: Clips,
    jobs: int | None = None,
    report: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Return `score_baselines` of the clips."""

    def score() -> dict[str, Any]:
        statistics = load_band_statistics(dataset, clips.task.unit, jobs or _cpus(), report)
        return score_baselines(clips, statistics, jobs=jobs, report=report)

    return cached(f"{_key(dataset, clips)}.json", score, _read_scores)


def load_baseline_predictions(datamodule: DataModule) -> BaselinePredictions:
    """Return `predict_baselines` of the data module."""
    dataset, clips, split = datamodule.dataset, datamodule.clips, datamodule.split

    def predict() -> dict[str, Any]:
        statistics = load_band_statistics(dataset, clips.task.unit, _cpus())
        return asdict(predict_baselines(clips, split, statistics))

    key = _key(dataset, clips, split.digest)
    return cached(f"{key}.answers.json", predict, _read_predictions)


def cached(name: str, make: Callable[[], dict[str, Any]], read: Callable[[Any], Cached]) -> Cached:
    """Return what `read` makes of the cache's file `name`, made again if it is unusable.

    A cache that cannot be written costs the next command the time to make it, nothing else.
    """
    path = cache_folder() / "baselines" / name
    with suppress(OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return read(json.loads(path.read_bytes()))
    made = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(made, default=np.ndarray.tolist).encode())
    except (OSError, RunError) as error:
        log.warning(f"baselines could not be kept in the cache: {one_line(error)}")
    return read(made)


def _read_scores(cached: Any) -> dict[str, Any]:
    scores = {name: {key: float(cached[name][key]) for key in SCORES} for name in BASELINES}
    return {"majority_accuracy": float(cached["majority_accuracy"]), **scores}


def _read_predictions(cached: Any) -> BaselinePredictions:
    stems, labels = tuple(cached["stems"]), np.array(cached["labels"], dtype=np.int64)
    rows = {name: np.array(cached["by_baseline"][name], dtype=np.int64) for name in BASELINES}
    if {labels.shape, *(row.shape[1:] for row in rows.values())} != {(len(stems),)}:
        raise ValueError("not one prediction a clip")
    return BaselinePredictions(stems, labels, rows, int(cached["majority"]))


def _key(dataset: Dataset, clips: Clips, *more: str) -> str:
    """Return a hash of the baselines' inputs, of `more`, and of how they are fitted."""
    metadata = [
        [r.stem, r.person, r.location, r.device, r.diagnosis, r.age, r.sex]
        for r in dataset.recordings
    ]
    labels = [[c.recording.stem, c.label] for c in clips.clips]
    sounds = statistics_key(dataset, clips.task.unit)
    parts = [CACHE_FORMAT, TREES, C, metadata, sounds, labels, asdict(clips.task), *more]
    content = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:24]


def score_baselines(
    clips: Clips,
    statistics: BandStatistics,
    *,
    seeds: int = 5,
    jobs: int | None = None,
    report: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Score each of `BASELINES`, cross-validated by patient in 5 folds, and the majority class.

    Returns `{"majority_accuracy": a, "device": {"balanced_accuracy": b, "macro_f1": f}, "all":
    {…}, "audio_linear": {…}}`, all in 0…1. Out-of-fold predictions of a seed are pooled before they
    are scored; scores are means over the seeds 0 to `seeds − 1`. Each clip is a row, with its
    recording's metadata and its own band statistics. `jobs` is the number of threads, by default
    one a core; `report` is called after each fold. Raises the `UserError` of `check_enough`.
    """
    check_enough(clips)
    table = _metadata(clips.clips)
    features = _features(clips.clips, table, statistics)
    return {
        "majority_accuracy": majority_accuracy(table["label"].to_numpy()),
        **cross_validate(features, table, seeds=seeds, jobs=jobs, report=report),
    }


def cross_validate(
    features: Mapping[str, Floats],
    table: pd.DataFrame,
    *,
    seeds: int,
    jobs: int | None,
    report: Callable[[], None] = lambda: None,
) -> dict[str, dict[str, float]]:
    """Return the `SCORES` of a prediction from each of `features`, as `score_baselines` does.

    `features`: float64 `[rows, columns]` by name; `table`: `label`, `patient` and `weight` of each
    row.
    """
    labels = table["label"].to_numpy()
    # Small sets: there cannot be more folds than patients, nor than clips of the largest class.
    folds = min(FOLDS, table["patient"].nunique(), int(np.bincount(labels).max()))
    splits = [split for seed in range(seeds) for split in _splits(table, folds, seed)]
    pooled = {name: np.empty((seeds, len(labels)), dtype=np.int64) for name in features}
    # BLAS's own threads would spin, over matrices this small.
    with threadpool_limits(limits=1, user_api="blas"), ThreadPoolExecutor(jobs or _cpus()) as p:
        try:
            fitted = p.map(partial(_predict_fold, features, table), splits)
            for (seed, _, test), predictions in zip(splits, fitted, strict=True):
                for name, predicted in predictions.items():
                    pooled[name][seed, test] = predicted
                report()
        finally:
            p.shutdown(cancel_futures=True)
    return {name: _mean([_scores(labels, row) for row in rows]) for name, rows in pooled.items()}


def _cpus() -> int:
    """Return the cores that this process may use, by affinity and by the quota of its container."""
    from joblib import cpu_count

    return int(cpu_count())


@dataclass(frozen=True)
class BaselinePredictions:
    """Predictions of the baselines for the held-out clips, in the order of `Split.select_clips`.

    `labels` are indices of `Split.classes`; `by_baseline[name]` holds the class that each seed's
    forest predicts, int `[seeds, clips]`, or the regression, which has no seed, int `[1, clips]`;
    `majority` is the most frequent class of training.
    """

    stems: tuple[str, ...]
    labels: Labels
    by_baseline: dict[str, Labels]
    majority: int

    def scores(self) -> dict[str, Any]:
        """Return scores as `score_baselines`, with the majority class of training."""
        return {
            "majority_accuracy": float(np.mean(self.labels == self.majority)),
            **{
                name: _mean([_scores(self.labels, row) for row in by_seed])
                for name, by_seed in self.by_baseline.items()
            },
        }


def predict_baselines(
    clips: Clips, split: Split, statistics: BandStatistics, *, seeds: int = 5
) -> BaselinePredictions:
    """Fit the same baselines on training and validation clips, and predict the test split.

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
    table = _metadata(known + unseen)
    labels = table["label"].to_numpy()
    train, test = np.split(np.arange(len(labels)), [len(known)])
    features = _features(known + unseen, table, statistics)
    with threadpool_limits(limits=1, user_api="blas"):
        by_seed = [
            _predict_fold(
                features if seed == 0 else {name: features[name] for name in COLUMNS},
                table,
                (seed, train, test),
            )
            for seed in range(seeds)
        ]
    by_baseline = {
        name: np.stack([predicted[name] for predicted in by_seed if name in predicted])
        for name in features
    }
    return BaselinePredictions(
        stems=tuple(clip.recording.stem for clip in unseen),
        labels=labels[test],
        by_baseline=by_baseline,
        majority=int(np.bincount(labels[train]).argmax()),
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
        fold = split.folds[0]
        train, held_out = (
            _metadata(split.select_clips(clips, stems)) for stems in (fold.train, fold.validation)
        )
        commonest = train.groupby("patient")["label"].agg(lambda labels: labels.mode()[0])
        predicted = held_out["patient"].map(commonest).fillna(train["label"].mode()[0])
        labels = held_out["label"].to_numpy()
        by_seed.append(_scores(labels, predicted.to_numpy(np.int64), ("accuracy", *SCORES)))
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


def _metadata(clips: Sequence[Clip]) -> pd.DataFrame:
    """Return a row a clip: label, patient, weight and what is known without audio."""
    names = COLUMNS["all"]
    rows = [
        (c.label, c.recording.person, *(getattr(c.recording, name) for name in names))
        for c in clips
    ]
    table = weigh_patients(pd.DataFrame(rows, columns=["label", "patient", *names]))
    return table.fillna({"age": _MISSING_AGE, "sex": "unknown"})


def weigh_patients(table: pd.DataFrame) -> pd.DataFrame:
    """Return `table` with a column `weight`, which sums to 1 for each `patient`.

    A patient with sixty recordings should not weigh sixty times as much as one with one.
    """
    return table.assign(weight=1 / table.groupby("patient")["patient"].transform("size"))


def _features(
    clips: Sequence[Clip], table: pd.DataFrame, statistics: BandStatistics
) -> dict[str, Floats]:
    """Return what each baseline sees of `clips`, float64 `[clips, columns]`, by `BASELINES`."""
    metadata = {name: _encode(table, columns) for name, columns in COLUMNS.items()}
    return {**metadata, AUDIO: select(statistics, clips)}


def _encode(table: pd.DataFrame, names: Iterable[str]) -> Floats:
    """Return float64 `[clips, columns]`: age in years, the others one-hot."""
    parts = [table[[name]] if name == "age" else pd.get_dummies(table[name]) for name in names]
    return pd.concat(parts, axis=1).to_numpy(np.float64)


def _splits(table: pd.DataFrame, folds: int, seed: int) -> Iterator[tuple[int, Labels, Labels]]:
    from sklearn.model_selection import StratifiedGroupKFold  # slow to import, often not needed

    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # A class with fewer clips than folds is predicted wrongly by the folds that lack it, as the
        # score for eight classes is meant to show.
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        for train, test in splitter.split(table, table["label"], table["patient"]):
            yield seed, train, test


def _predict_fold(
    features: Mapping[str, Floats], table: pd.DataFrame, split: tuple[int, Labels, Labels]
) -> dict[str, Labels]:
    """Return what each of `features` predicts for the test rows of (seed, train, test)."""
    seed, train, test = split
    labels, weights = (table[name].to_numpy()[train] for name in ("label", "weight"))
    bootstraps = None
    predicted = {}
    for name, x in features.items():
        if name == AUDIO:
            predicted[name] = _regression(x, table, train, test)
            continue
        bootstraps = bootstraps or draw_bootstraps(labels, weights, seed, TREES)
        predicted[name] = predict_forest(bootstraps, x[train], x[test])
    return predicted


def _regression(features: Floats, table: pd.DataFrame, train: Labels, test: Labels) -> Labels:
    """Predict by a logistic regression on standardised features.

    All classes weigh the same, and within a class each patient does. The weights sum to the number
    of patients, of whom there are fewer than clips, so that clips do not outweigh the penalty.
    """
    from sklearn.preprocessing import StandardScaler

    fitted = table.iloc[train]
    weights = fitted["weight"] / fitted.groupby("label")["weight"].transform("sum")
    weights *= fitted["patient"].nunique() / weights.sum()
    labels, of_rows = fitted["label"].to_numpy(), weights.to_numpy()
    if len(set(labels)) == 1:
        return np.full(len(test), labels[0])
    scaler = StandardScaler().fit(features[train], sample_weight=of_rows)
    known, unseen = (scaler.transform(features[rows]) for rows in (train, test))
    return fit_logistic(known, labels, of_rows, C).predict(unseen)


def _scores(labels: Labels, predicted: Labels, names: Sequence[str] = SCORES) -> dict[str, float]:
    """Return metrics of hard predictions, over the classes that occur in `labels`."""
    one_hot = np.eye(1 + max(labels.max(), predicted.max()))[predicted]
    return compute_metrics(labels, one_hot, names)


def _mean(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([one[key] for one in scores])) for key in scores[0]}
