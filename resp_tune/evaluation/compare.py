"""Compare a model with another, or with the baselines, on the same clips.

Two models are compared from their `predictions.csv`; all differences are on the same resamples of
the patients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from resp_tune.common.paths import user_path
from resp_tune.common.text import plural
from resp_tune.errors import UserError
from resp_tune.evaluation.baselines import SCORES, BaselinePredictions, load_baseline_predictions
from resp_tune.evaluation.bootstrap import paired_differences
from resp_tune.evaluation.score import labels_and_probabilities
from resp_tune.training.datamodule import DataModule
from resp_tune.training.metrics import Labels, all_metrics

FILE = "predictions.csv"
SPLITS = ("validation", "test")
_TEXTS = ("side", "recording", "patient", "label")
BaselineDifferences = dict[str, dict[str, dict[str, Any]]]
MAJORITY = "majority"
SAME = "compare two runs of one --task, --protocol, --split-seed and --folds"


def read_predictions(given: str, flag: str = "--compare") -> pd.DataFrame:
    """Read the predictions of a search, a `winner/` folder, or a trial's or replicate's folder.

    Raises `UserError` without readable predictions.
    """
    folder = user_path(given)
    path = next((p for p in (folder / FILE, folder / "winner" / FILE) if p.is_file()), None)
    if path is None:
        raise UserError(
            f"{flag} '{given}': no {FILE} there: give a finished search's folder, its winner/, "
            "results/NAME/trials/N of a finished trial, or replicates/K in that"
        )
    try:
        table = pd.read_csv(path, dtype=dict.fromkeys(_TEXTS, str), keep_default_na=False)
        classes = _classes(table)
        if not len(table) or not set(table["label"]) <= set(classes):
            raise ValueError("it has no clips, or labels without a column of probabilities")
        probabilities = table[[f"p_{name}" for name in classes]].to_numpy(np.float64)
        if not ((probabilities >= 0) & (probabilities <= 1)).all():
            raise ValueError("a probability is outside 0 to 1")
        table[[*_TEXTS]]
    except (OSError, ValueError, KeyError) as error:
        cause = " ".join(str(error).split())
        raise UserError(
            f"'{path}' is not a table of predictions ({cause}): rerun its search's command, "
            "which writes it again"
        ) from error
    return table


def compare(a: pd.DataFrame, b: pd.DataFrame) -> dict[str, dict[str, Any]]:
    """Compare two models on each split of which they have the same clips with the same labels.

    Returns `{"sides": {split: {clips, patients, classes, metrics}}, "left_out": {split: reason}}`,
    metrics as `paired_differences`. Raises `UserError` without such a split, or if their classes
    differ.
    """
    classes = classes_of_both(a, b)
    splits = [split for split in SPLITS if split in set(a["side"]) and split in set(b["side"])]
    if not splits:
        raise UserError(
            "the two have no split in common: a trial has predictions of validation, a winner of "
            "validation and test"
        )
    compared: dict[str, dict[str, Any]] = {}
    left_out: dict[str, str] = {}
    for split in splits:
        try:
            compared[split] = _compare_split(*clips_of_both(split, a, b), tuple(classes))
        except UserError as error:
            left_out[split] = str(error)
    if not compared:
        raise UserError("; ".join(left_out.values()))
    return {"sides": compared, "left_out": left_out}


def classes_of_both(a: pd.DataFrame, b: pd.DataFrame) -> list[str]:
    """Return the classes of two models' predictions; raise `UserError` if they differ."""
    classes = _classes(a)
    if differing := sorted(set(classes) ^ set(_classes(b))):
        raise UserError(
            f"the two have different classes (only one has {', '.join(differing)}): {SAME}"
        )
    return classes


def _classes(table: pd.DataFrame) -> list[str]:
    return [name.removeprefix("p_") for name in table.columns if name.startswith("p_")]


def _rows(table: pd.DataFrame) -> pd.DataFrame:
    """Index the rows by recording and the number of the clip in it, in order of time."""
    rows = table.sort_values("recording", kind="stable")
    return rows.assign(clip=rows.groupby("recording").cumcount()).set_index(["recording", "clip"])


def clips_of_both(
    split: str, a: pd.DataFrame, b: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the rows of `split` in both tables, in one order; raise `UserError` if they differ."""
    a, b = (_rows(table[table["side"] == split]) for table in (a, b))
    if not len(a) and not len(b):
        raise UserError(f"neither of the two has predictions of the {split} split: {SAME}")
    alone = [one.index.difference(other.index) for one, other in ((a, b), (b, a))]
    if example := [*alone[0], *alone[1]]:
        raise UserError(
            f"the two {split} splits have different clips ({len(alone[0])} only the first, "
            f"{len(alone[1])} only the second, e.g. of {example[0][0]}): {SAME}"
        )
    known = [name for name in ("label", "patient", "start") if name in a and name in b]
    for name in known:
        other = a[name].to_numpy() != b[name].to_numpy()
        if other.any():
            raise UserError(
                f"the two {split} splits differ in the {name} of "
                f"{plural(int(other.sum()), 'clip')}, e.g. of {a.index[other][0][0]}: {SAME}"
            )
    return a, b


def _compare_split(a: pd.DataFrame, b: pd.DataFrame, classes: tuple[str, ...]) -> dict[str, Any]:
    labels, of_a = labels_and_probabilities(a, classes)
    _, of_b = labels_and_probabilities(b, classes)
    patients, names = list(a["patient"]), all_metrics(labels, of_a, classes)
    return {
        "clips": len(a),
        "patients": len(set(patients)),
        "classes": [name for i, name in enumerate(classes) if i in labels],
        "metrics": paired_differences(labels, of_a, [of_b], patients, names),
    }


def baseline_differences(table: pd.DataFrame, datamodule: DataModule) -> BaselineDifferences:
    """Return `{name: {metric: {winner, baseline, difference, interval}}}`.

    The names are `BASELINES`. `table` holds the predictions of the test split only, in the order of
    `ClipLabels`. `baseline` is the mean over seeds, as in the summary, on each resample as well.
    The others are those of `paired_differences`.
    """
    predictions = load_baseline_predictions(datamodule)
    _check_same([table], [predictions], datamodule.split.classes)
    return _differences(table, predictions.by_baseline, datamodule.split.classes, SCORES)


def pooled_differences(
    tables: Sequence[pd.DataFrame], datamodules: Sequence[DataModule]
) -> BaselineDifferences:
    """Return `baseline_differences` of the pooled predictions of several test splits.

    Each baseline is fitted anew for each split, on what its search could use, and `majority`
    predicts the most frequent class of that. `tables` are in the order of `datamodules`.
    """
    each = [load_baseline_predictions(datamodule) for datamodule in datamodules]
    classes = datamodules[0].split.classes
    _check_same(tables, each, classes)
    majority = np.concatenate([np.full(len(one.labels), one.majority) for one in each])
    pooled = {
        name: np.concatenate([one.by_baseline[name] for one in each], axis=1)
        for name in each[0].by_baseline
    }
    baselines = {MAJORITY: majority[None], **pooled}
    return _differences(pd.concat(tables), baselines, classes, (*SCORES, "accuracy"))


def _check_same(
    tables: Sequence[pd.DataFrame],
    predictions: Sequence[BaselinePredictions],
    classes: Sequence[str],
) -> None:
    for table, baselines in zip(tables, predictions, strict=True):
        labels, _ = labels_and_probabilities(table, classes)
        same = list(table["recording"]) == list(baselines.stems)
        if not same or (labels != baselines.labels).any():
            raise ValueError("these are not predictions of the test split's clips, in their order")


def _differences(
    table: pd.DataFrame,
    baselines: Mapping[str, Labels],
    classes: Sequence[str],
    names: Sequence[str],
) -> BaselineDifferences:
    labels, probabilities = labels_and_probabilities(table, classes)
    patients = list(table["patient"])
    found: BaselineDifferences = {}
    for name, by_seed in baselines.items():
        others = [np.eye(len(classes))[row] for row in by_seed]
        pairs = paired_differences(labels, probabilities, others, patients, names)
        found[name] = {
            metric: {"winner": pair.pop("a"), "baseline": pair.pop("b"), **pair}
            for metric, pair in pairs.items()
        }
    return found
