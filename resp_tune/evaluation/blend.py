"""Blend two winners: mix their saved probabilities, by a weight that validation chooses.

Nothing is predicted here: the test predictions are those of each winner's own test-set access,
which is on record. The weight is chosen on the validation split alone; of two nested searches, in
each outer fold on its own validation split.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import pandas as pd

from resp_tune.common.paths import user_path
from resp_tune.errors import UserError
from resp_tune.evaluation.bootstrap import bootstrap, intervals, paired_differences
from resp_tune.evaluation.compare import SAME, classes_of_both, clips_of_both, read_predictions
from resp_tune.evaluation.score import labels_and_probabilities
from resp_tune.training.metrics import METRICS, Floats, Labels, Probabilities, all_metrics, pool

STEPS = 20  # of weights from 0 to 1: a finer grid would be decided by single clips
OBJECTIVE = "macro_f1"  # of winners that do not say which
CONFIG = "config.json"
LEVELS = ("recording", "patient")


@dataclass(frozen=True)
class _Pair:
    """The predictions of two winners for the same clips, of one level.

    `labels` `[clips]`, `each` two of `[clips, classes]`, `patients` `[clips]`.
    """

    labels: Labels
    each: tuple[Probabilities, Probabilities]
    patients: Sequence[str]

    def mixed(self, weight: float | Floats) -> Probabilities:
        """Return the probabilities of the blend in which the first winner has `weight`.

        It is one for all clips, or `[clips, 1]`.
        """
        return weight * self.each[0] + (1 - weight) * self.each[1]

    @property
    def group(self) -> Labels:
        """Return the number of each clip's patient, in the order of their names."""
        return np.unique(np.asarray(self.patients), return_inverse=True)[1]


@dataclass(frozen=True)
class _Choice:
    """The weight that one validation split has chosen, its scores, and the test predictions."""

    metric: str
    classes: tuple[str, ...]
    weight: float
    validation: dict[str, float]
    test: _Pair | None

    @property
    def weights(self) -> dict[str, float]:
        """Return the weight of each winner."""
        return {"a": self.weight, "b": round(1 - self.weight, 6)}


def blend(a: str, b: str) -> dict[str, Any]:
    """Return what the blend of the winners in the folders `a` and `b` is worth.

    `{metric, weights{a, b}, validation{a, b, blend}, test}`. `test` is None without a test split,
    else by level `{clips, patients, classes, metric: value …, intervals{}, differences{a, b}}`: a
    difference `{metric: [value, low, high]}` is the blend minus that winner on the same resamples
    of the patients. Of two nested searches `test` is of the pooled predictions, weights and
    validation are means over the outer folds, and `outer` has those of each. Raises `UserError` if
    the two are not of one split.
    """
    nested = _outer_folders(a), _outer_folders(b)
    if nested == ([], []):
        choice = _choose(a, b)
        return _result(choice, choice.weights, choice.validation, choice.test, choice.weight)
    if len(nested[0]) != len(nested[1]):
        counts = " and ".join(str(len(folders)) for folders in nested)
        raise UserError(f"--blend: the two have {counts} outer folds: give two of one number")
    choices = [_choose(*folders) for folders in zip(*nested, strict=True)]
    tests = [choice.test for choice in choices if choice.test is not None]
    if len(tests) < len(choices) or len({choice.classes for choice in choices}) > 1:
        raise UserError(
            "--blend: an outer fold has no test predictions, or other classes than the next: rerun "
            "the commands of the two searches"
        )
    each = (np.concatenate([t.each[0] for t in tests]), np.concatenate([t.each[1] for t in tests]))
    patients = [patient for test in tests for patient in test.patients]
    pooled = _Pair(np.concatenate([test.labels for test in tests]), each, patients)
    weight = np.concatenate([np.full((len(c.test.labels), 1), c.weight) for c in choices if c.test])
    outer = [
        {"fold": number, "weights": choice.weights, "validation": choice.validation}
        for number, choice in enumerate(choices)
    ]
    weights = {n: fmean(c.weights[n] for c in choices) for n in ("a", "b")}
    validation = {n: fmean(c.validation[n] for c in choices) for n in choices[0].validation}
    return {**_result(choices[0], weights, validation, pooled, weight), "outer": outer}


def _outer_folders(given: str) -> list[str]:
    """Return the folders of a nested search's outer folds, in order; none of another search."""
    if "://" not in given and not user_path(given).is_dir():
        raise UserError(f"--blend: '{given}' is no folder: give those of two searches")
    folder = user_path(given) / "outer"
    numbers = itertools.takewhile(lambda n: (folder / str(n)).is_dir(), itertools.count())
    return [str(folder / str(number)) for number in numbers]


def _result(
    choice: _Choice,
    weights: Mapping[str, float],
    validation: Mapping[str, float],
    test: _Pair | None,
    weight: float | Floats,
) -> dict[str, Any]:
    scores = None
    if test is not None:
        # A breathing cycle has another label than the next one, so cycles have no other level.
        labelled = pd.Series(test.labels).groupby(list(test.patients)).nunique()
        levels = LEVELS if (labelled == 1).all() else LEVELS[:1]
        scores = {level: _score(test, weight, choice.classes, level) for level in levels}
    known = {"metric": choice.metric, "weights": weights, "validation": validation}
    return {**known, "test": scores}


def _choose(a: str, b: str) -> _Choice:
    found = [_read(folder) for folder in (a, b)]
    digests = {digest for _, digest, _ in found if digest is not None}
    if len(digests) > 1:
        raise UserError(f"--blend: the two were trained with different splits: {SAME}")
    tables = (found[0][0], found[1][0])
    classes = tuple(classes_of_both(*tables))
    validation = _pair("validation", tables, classes)
    known = _scores(validation, 1.0, classes)
    metric = next((m for _, _, m in found if m is not None), OBJECTIVE)
    if metric not in known:
        raise UserError(
            f"--blend: the weights cannot be chosen by {metric}, the metric of '{a}': saved "
            "predictions do not tell it; blend searches of --level recording or patient"
        )
    weight = _best_weight(validation, metric, classes)
    scores = {
        name: _scores(validation, w, classes)[metric]
        for name, w in (("a", 1.0), ("b", 0.0), ("blend", weight))
    }
    tested = all("test" in set(table["side"]) for table in tables)
    test = _pair("test", tables, classes) if tested else None
    return _Choice(metric, classes, weight, scores, test)


def _read(folder: str) -> tuple[pd.DataFrame, str | None, str | None]:
    """Return a winner's predictions, the digest of its split and its objective, if it says so."""
    table = read_predictions(folder, "--blend")
    given = user_path(folder)
    path = next((p for p in (given / CONFIG, given / "winner" / CONFIG) if p.is_file()), None)
    if path is None:  # a trial
        return table, None, None
    try:
        provenance = json.loads(path.read_bytes())["provenance"]
        return table, provenance.get("split_sha256"), next(iter(provenance.get("score", {})), None)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise UserError(
            f"'{path}' is damaged ({type(error).__name__}): rerun its search's command, which "
            "writes it again"
        ) from error


def _pair(side: str, tables: tuple[pd.DataFrame, pd.DataFrame], classes: Sequence[str]) -> _Pair:
    a, b = clips_of_both(side, *tables)
    labels, of_a = labels_and_probabilities(a, classes)
    _, of_b = labels_and_probabilities(b, classes)
    return _Pair(labels, (of_a, of_b), list(a["patient"]))


def _scores(pair: _Pair, weight: float, classes: tuple[str, ...]) -> Mapping[str, float]:
    """Return all metrics of a blend by recording and patient, by their keys."""
    groups = {"patient": pair.group}
    return all_metrics(pair.labels, pair.mixed(weight), classes, groups)


def _best_weight(pair: _Pair, metric: str, classes: tuple[str, ...]) -> float:
    """Return the weight of the first winner with the best score; of equals the one nearest ½."""
    sign = 1 if METRICS[metric].mode == "max" else -1
    weights = [step / STEPS for step in range(STEPS + 1)]
    ranked = {w: (sign * _scores(pair, w, classes)[metric], -abs(w - 0.5)) for w in weights}
    return max(weights, key=ranked.__getitem__)


def _score(
    pair: _Pair, weight: float | Floats, classes: tuple[str, ...], level: str
) -> dict[str, Any]:
    """Return metrics of the blend with intervals, and its differences from each winner."""
    labels, patients = pair.labels, pair.patients
    mixed, *each = pair.mixed(weight), *pair.each
    if level == "patient":
        (labels, mixed), *others = (pool(pair.labels, p, pair.group) for p in (mixed, *each))
        each, patients = [other for _, other in others], sorted(set(pair.patients))
    metrics = all_metrics(labels, mixed, classes)
    several = len(set(patients)) > 1  # the resamples of one are all the same
    samples = bootstrap(labels, mixed, patients, names=metrics) if several else {}
    differences = {}
    for name, other in zip(("a", "b"), each, strict=True):
        found = paired_differences(labels, mixed, [other], patients, metrics)
        differences[name] = {
            key: [value["difference"], *(value["interval"] or (None, None))]
            for key, value in found.items()
        }
    return {
        "clips": len(labels),
        "patients": len(set(patients)),
        "classes": [name for i, name in enumerate(classes) if i in labels],
        **metrics,
        "intervals": {name: list(span) for name, span in intervals(samples).items()},
        "differences": differences,
    }
