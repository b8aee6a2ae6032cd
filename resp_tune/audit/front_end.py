"""Measure what the front end shows apart from lung sounds: its highest bands, and the length.

Stethoscopes differ in their sample rate, their low-pass filter and in how long they record. A
network that reads the device from these needs no lung sounds. Forests are trained on them alone,
cross-validated by patient, to predict the device and the diagnosis: what a forest predicts better
than chance, a network can use.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from resp_tune.common.text import plural
from resp_tune.config import FrontEnd
from resp_tune.data.dataset import Dataset
from resp_tune.data.tasks import get_task
from resp_tune.evaluation.baselines import (
    FOLDS,
    SCORES,
    TREES,
    cached,
    cross_validate,
    weigh_patients,
)
from resp_tune.features.cache import AudioSource
from resp_tune.features.logmel import log_mels
from resp_tune.features.parallel import recording_pool
from resp_tune.training.datamodule import audio_sources
from resp_tune.training.metrics import Floats, Labels

log = logging.getLogger(__name__)

FORMAT = 2
BANDS = 2  # the highest bands, whose difference shows a low-pass filter
TASK = "diagnosis"
TARGETS = ("device", TASK)
SEEDS = 1
# What a balanced accuracy must exceed chance by to be warned of, and in standard errors.
MARGIN, ERRORS = 0.1, 2.0


@dataclass(frozen=True)
class _Target:
    """What a forest predicts: the class `labels` of the recordings `rows`, indices.

    `patients` is the number of patients of each class.
    """

    classes: tuple[str, ...]
    patients: tuple[int, ...]
    rows: Labels
    labels: Labels

    def describe(self) -> dict[str, Any]:
        """Return the classes, chance, and the balanced accuracy that is warned of.

        The standard error of a balanced accuracy over C classes of n patients is at most
        √(Σ 0.25 / n) / C.
        """
        chance = 1 / len(self.classes)
        error = sum(0.25 / n for n in self.patients) ** 0.5 * chance
        above = chance + max(MARGIN, ERRORS * error)
        return {"classes": self.classes, "chance": chance, "warned_above": above}


def front_end_giveaways(
    dataset: Dataset, front_ends: Sequence[FrontEnd], workers: int
) -> dict[str, Any]:
    """Return how well the last bands of each front end, and the length, predict each target.

    `{"bands": 2, "targets": {name: {"classes": […], "chance": c, "warned_above": w}}, "length":
    {name: {metric: value}}, "front_ends": [{field: value, …, "native_minus_resampled_db": d, name:
    {metric: value}}]}`, scores in 0…1. A target that has fewer than two classes with enough
    patients is left out. `d` says how much more the last band falls off in resampled recordings.
    """
    sources = audio_sources(dataset.recordings, workers)
    metadata = [[r.stem, r.person, r.device, r.diagnosis, r.seconds] for r in dataset.recordings]
    fields = [asdict(front_end) for front_end in front_ends]
    parts = [FORMAT, BANDS, TREES, metadata, [s.digest for s in sources], fields]
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]

    def measure() -> dict[str, Any]:
        log.info(f"what the last bands of {plural(len(fields), 'front end')} and the length show")
        features = {"length": np.array([[r.seconds] for r in dataset.recordings])}
        for i, bands in enumerate(_last_bands(sources, front_ends, workers)):
            features[str(i)] = bands
        targets = {name: _target(dataset, name) for name in TARGETS}
        scores = {name: _score(features, dataset, t) for name, t in targets.items() if t}
        return {
            "bands": BANDS,
            "targets": {name: t.describe() for name, t in targets.items() if t},
            "length": {name: by_features["length"] for name, by_features in scores.items()},
            "front_ends": [
                {
                    **shown,
                    "native_minus_resampled_db": _native_minus_resampled(
                        dataset, features[str(i)], shown["sample_rate"]
                    ),
                    **{name: by_features[str(i)] for name, by_features in scores.items()},
                }
                for i, shown in enumerate(fields)
            ],
        }

    return cached(f"{key}.front_end.json", measure, _read)


def giveaway_warnings(found: dict[str, Any]) -> list[str]:
    """Return a line on the bands and one on the length, if they predict the diagnosis."""
    if TASK not in found["targets"]:
        return []
    target = found["targets"][TASK]
    best = max(found["front_ends"], key=lambda f: float(f[TASK]["balanced_accuracy"]))
    bands = f"the last {BANDS} of {best['n_mels']} mel bands, up to {best['f_max']:g} Hz,"
    return [
        f"shortcut: {what} alone {verb} the {TASK}. A forest on nothing else has a balanced "
        f"accuracy of {scores['balanced_accuracy']:.3f} on patients that it has not seen (chance "
        f"{target['chance']:.3f}): {advice}"
        for what, verb, scores, advice in (
            (bands, "predict", best[TASK], "a lower f_max or `normalise: pcen` hides some of it"),
            ("the length", "predicts", found["length"][TASK], "`crop: random` hides it"),
        )
        if scores["balanced_accuracy"] > target["warned_above"]
    ]


def _last_bands(
    sources: Sequence[AudioSource], front_ends: Sequence[FrontEnd], workers: int
) -> list[Floats]:
    """Return mean and standard deviation over time of each front end's last bands.

    One float64 `[recordings, 2 · BANDS]` per front end. Front ends that share an STFT are computed
    in one pass.
    """
    passes: dict[tuple[object, ...], list[int]] = {}
    for i, f in enumerate(front_ends):
        stft = (f.sample_rate, f.resampling, f.n_fft, f.hop_length)
        passes.setdefault(stft, []).append(i)
    features = [np.empty((len(sources), 2 * BANDS)) for _ in front_ends]

    def one(row: int) -> None:
        with torch.inference_mode():
            for chosen in passes.values():
                group = [front_ends[i] for i in chosen]
                waveform = sources[row].load(group[0].sample_rate, group[0].resampling)
                for i, mels in zip(chosen, log_mels(waveform, group), strict=True):
                    last = mels[:, -BANDS:]
                    statistics = torch.cat([last.mean(0), last.std(0, correction=0)])
                    features[i][row] = statistics.numpy()

    with recording_pool(workers) as pool:
        list(pool.map(one, range(len(sources))))
    return features


def _native_minus_resampled(dataset: Dataset, bands: Floats, sample_rate: int) -> float | None:
    """Return the mean rise of the last band over the one before it: native − resampled, in dB.

    None unless some recordings are at `sample_rate` and others are not. PCEN has no unit.
    """
    native = np.array([r.sample_rate == sample_rate for r in dataset.recordings])
    if native.all() or not native.any():
        return None
    rise = bands[:, BANDS - 1] - bands[:, BANDS - 2]
    return float(rise[native].mean() - rise[~native].mean())


def _target(dataset: Dataset, name: str) -> _Target | None:
    """Return the classes of at least `FOLDS` patients; None for fewer than two of them."""
    if name == "device":
        named = [(i, r.device) for i, r in enumerate(dataset.recordings)]
    else:
        task = get_task(name)
        labels = [task.label(r.diagnosis) for r in dataset.recordings]
        named = [(i, task.classes[c]) for i, c in enumerate(labels) if c is not None]
    patients = {(dataset.recordings[i].patient, c) for i, c in named}
    sizes = Counter(c for _, c in patients)
    classes = tuple(sorted(c for c, n in sizes.items() if n >= FOLDS))
    if len(classes) < 2:
        return None
    kept = [(i, classes.index(c)) for i, c in named if c in classes]
    rows, indices = np.array(kept, dtype=np.int64).T
    return _Target(classes, tuple(sizes[c] for c in classes), rows, indices)


def _score(
    features: dict[str, Floats], dataset: Dataset, target: _Target
) -> dict[str, dict[str, float]]:
    patients = [dataset.recordings[i].person for i in target.rows]
    table = weigh_patients(pd.DataFrame({"label": target.labels, "patient": patients}))
    chosen = {name: values[target.rows] for name, values in features.items()}
    return cross_validate(chosen, table, seeds=SEEDS, jobs=None)


def _read(saved: Any) -> dict[str, Any]:
    """Return what `measure` saved; raise `KeyError` or `TypeError` where it is damaged."""
    for name in saved["targets"]:
        for scores in (saved["length"][name], *(f[name] for f in saved["front_ends"])):
            if not all(isinstance(scores[metric], float) for metric in SCORES):
                raise TypeError(name)
    if not saved["front_ends"]:
        raise KeyError("front_ends")
    return dict(saved)
