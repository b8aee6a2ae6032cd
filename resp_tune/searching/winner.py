"""The winner: made into a bundle, scored on validation, and once on the test side."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from resp_tune.errors import RunError
from resp_tune.features.store import open_store
from resp_tune.learning.bundle import Bundle, load_bundle, save_bundle
from resp_tune.learning.intervals import bootstrap, intervals
from resp_tune.learning.metrics import Labels, Probabilities, all_metrics, majority_accuracy
from resp_tune.learning.problem import Problem, fill_stores
from resp_tune.learning.training import build_network
from resp_tune.tuning.study import TrialRecord


@dataclass(frozen=True)
class Scored:
    """Predictions for the clips of a side, and what they score."""

    metrics: dict[str, float]
    majority: float
    intervals: dict[str, tuple[float, float]]
    predictions: pd.DataFrame


def write_bundle(
    folder: Path, trial: TrialRecord, checkpoint: Path, problem: Problem, details: Mapping[str, Any]
) -> Bundle:
    """The trial's last checkpoint as a bundle in `folder`."""
    try:
        state = torch.load(checkpoint, weights_only=True, map_location="cpu")
    except OSError as error:
        raise RunError(
            f"the checkpoint of trial {trial.number}, '{checkpoint}', cannot be read: "
            f"{error.strerror}"
        ) from error
    networks = []
    for fold in state["folds"]:
        network = build_network(trial.config, len(problem.sides.classes))
        network.load_state_dict(fold["network"])
        networks.append(network)
    save_bundle(folder, trial.config, problem.sides.classes, networks, details)
    return load_bundle(folder)


def score_validation(bundle: Bundle, problem: Problem, store: Path) -> pd.DataFrame:
    """What each fold's network says about its own validation side: rows as in `predictions`.

    Never augmented, so with the preset `notebook` it differs a little from the trial's own figures.
    """
    frames = open_store(store)
    parts = []
    for fold, network in zip(problem.folds(), bundle.networks, strict=True):
        own = Bundle(bundle.config, bundle.classes, (network,), {})
        side = fold.validation.side(frames, bundle.config.front_end)
        probabilities = own.predict_clips(side.clips)
        recordings = [problem.search_stems[i] for i in fold.validation.recording]
        parts.append(
            predictions("validation", problem, recordings, side.labels.numpy(), probabilities)
        )
    return pd.concat(parts, ignore_index=True)


def score_test(bundle: Bundle, problem: Problem, stems: Sequence[str], *, workers: int) -> Scored:
    """Score the bundle on the test side `stems`, whose recordings are read here and not before."""
    front_end = bundle.config.front_end
    store = fill_stores(problem, stems, [front_end], workers=workers).folders[front_end]
    table = problem.table(stems, stems)
    side = table.side(open_store(store), front_end)
    labels, probabilities = side.labels.numpy(), bundle.predict_clips(side.clips)
    recordings = [stems[i] for i in table.recording]
    frame = predictions("test", problem, recordings, labels, probabilities)
    metrics = all_metrics(labels, probabilities, bundle.classes)
    samples = bootstrap(labels, probabilities, list(frame["patient"]))
    return Scored(
        metrics,
        majority_accuracy(labels),
        {name: span for name, span in intervals(samples).items() if name in metrics},
        frame,
    )


def predictions(
    side: str,
    problem: Problem,
    stems: Sequence[str],
    labels: Labels,
    probabilities: Probabilities,
) -> pd.DataFrame:
    """One row a clip: side, recording, patient, device, label, predicted, p_<class>…"""
    recordings = {r.stem: r for r in problem.dataset.recordings}
    classes = np.array(problem.sides.classes)
    return pd.DataFrame(
        {
            "side": side,
            "recording": list(stems),
            "patient": [recordings[s].patient for s in stems],
            "device": [recordings[s].device for s in stems],
            "label": classes[labels],
            "predicted": classes[probabilities.argmax(1)],
            **{f"p_{c}": probabilities[:, i].round(6) for i, c in enumerate(classes)},
        }
    )


def declare_reading(
    readings: Sequence[Mapping[str, Any]], number: int, weights_sha256: str
) -> list[dict[str, Any]]:
    """`readings` of the test side with this one added, unless the same weights were read before."""
    known = [dict(r) for r in readings]
    if any(r["weights_sha256"] == weights_sha256 for r in known):
        return known
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return [*known, {"time": now, "winner_number": number, "weights_sha256": weights_sha256}]
