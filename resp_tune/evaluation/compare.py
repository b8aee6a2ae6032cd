"""Two runs on the same clips: the difference of their figures, patient by patient.

What a run says of each clip lies in its `predictions.csv`, so nothing is read or scored anew.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from resp_tune.common.paths import user_path
from resp_tune.common.text import count
from resp_tune.errors import UserError
from resp_tune.evaluation.group_metrics import labels_and_probabilities
from resp_tune.training.bootstrap import paired
from resp_tune.training.metrics import all_metrics

FILE = "predictions.csv"
SIDES = ("validation", "test")
_TEXTS = ("side", "recording", "patient", "label")
SAME = "compare two runs of one --task, --protocol, --split-seed and --folds"


def read_predictions(given: str) -> pd.DataFrame:
    """The predictions of a search, a `winner/` folder, or a trial's or replicate's folder.

    Raises `UserError` where there are none that can be read.
    """
    folder = user_path(given)
    path = next((p for p in (folder / FILE, folder / "winner" / FILE) if p.is_file()), None)
    if path is None:
        raise UserError(
            f"--compare '{given}': no {FILE} there: give a finished search's folder, its winner/, "
            "results/NAME/trials/N of a finished trial, or replicates/K in that"
        )
    try:
        frame = pd.read_csv(path, dtype=dict.fromkeys(_TEXTS, str), keep_default_na=False)
        classes = _classes(frame)
        if not len(frame) or not set(frame["label"]) <= set(classes):
            raise ValueError("it has no clips, or labels without a column of probabilities")
        probabilities = frame[[f"p_{name}" for name in classes]].to_numpy(np.float64)
        if not ((probabilities >= 0) & (probabilities <= 1)).all():
            raise ValueError("a probability is outside 0 to 1")
        frame[[*_TEXTS]]
    except (OSError, ValueError, KeyError) as error:
        cause = " ".join(str(error).split())
        raise UserError(
            f"'{path}' is not a table of predictions ({cause}): the same command of its search "
            "makes it again"
        ) from error
    return frame


@dataclass(frozen=True)
class Comparison:
    """`sides[side]`: `{clips, patients, classes, metrics{name: {a, b, difference, interval}}}`.

    `difference` is a − b and `interval` its central 95 % over the same resamples of the patients,
    None where a single patient leaves nothing to draw. `left_out[side]` says why a side that both
    runs have cannot be compared.
    """

    sides: dict[str, dict[str, Any]]
    left_out: dict[str, str]


def compare(a: pd.DataFrame, b: pd.DataFrame) -> Comparison:
    """Two runs on each side on which they have the same clips with the same labels.

    Raises `UserError` where there is none, or where they tell other classes apart.
    """
    classes = _classes(a)
    if differing := sorted(set(classes) ^ set(_classes(b))):
        raise UserError(
            f"the two runs tell other classes apart (only one has {', '.join(differing)}): {SAME}"
        )
    sides = [side for side in SIDES if side in set(a["side"]) and side in set(b["side"])]
    if not sides:
        raise UserError(
            "the two runs have no side in common: a trial has predictions of validation, a winner "
            "of validation and test"
        )
    compared: dict[str, dict[str, Any]] = {}
    left_out: dict[str, str] = {}
    for side in sides:
        of_a, of_b = (_rows(frame[frame["side"] == side]) for frame in (a, b))
        try:
            compared[side] = _compare_side(side, of_a, of_b, tuple(classes))
        except UserError as error:
            left_out[side] = str(error)
    if not compared:
        raise UserError("; ".join(left_out.values()))
    return Comparison(compared, left_out)


def _classes(frame: pd.DataFrame) -> list[str]:
    return [name.removeprefix("p_") for name in frame.columns if name.startswith("p_")]


def _rows(frame: pd.DataFrame) -> pd.DataFrame:
    """By recording and the clip's place in it; a recording's clips stand in order of time."""
    rows = frame.sort_values("recording", kind="stable")
    place = rows.groupby("recording").cumcount()
    return rows.assign(place=place).set_index(["recording", "place"])


def _compare_side(
    side: str, a: pd.DataFrame, b: pd.DataFrame, classes: tuple[str, ...]
) -> dict[str, Any]:
    alone = [one.index.difference(other.index) for one, other in ((a, b), (b, a))]
    if example := [*alone[0], *alone[1]]:
        raise UserError(
            f"the two {side} sides hold other clips ({len(alone[0])} only the first, "
            f"{len(alone[1])} only the second, e.g. of {example[0][0]}): {SAME}"
        )
    known = [name for name in ("label", "patient", "start") if name in a and name in b]
    for name in known:
        other = a[name].to_numpy() != b[name].to_numpy()
        if other.any():
            raise UserError(
                f"the two {side} sides differ in the {name} of {count(int(other.sum()), 'clip')}, "
                f"e.g. of {a.index[other][0][0]}: {SAME}"
            )
    labels, of_a = labels_and_probabilities(a, classes)
    _, of_b = labels_and_probabilities(b, classes)
    patients = list(a["patient"])
    several = len(set(patients)) > 1
    values = [all_metrics(labels, p, classes) for p in (of_a, of_b)]
    return {
        "clips": len(a),
        "patients": len(set(patients)),
        "classes": [name for i, name in enumerate(classes) if i in labels],
        "metrics": {
            name: {
                "a": values[0][name],
                "b": values[1][name],
                "difference": difference,
                "interval": [low, high] if several else None,
            }
            for name, (difference, low, high) in paired(
                labels, of_a, of_b, patients, classes
            ).items()
        },
    }
