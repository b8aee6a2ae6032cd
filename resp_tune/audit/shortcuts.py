"""Test whether the device or the age gives the diagnosis away, by permuting the diagnoses.

A shortcut is warned of if it is both significant and large.

Device: each patient counts once, with the device of most of their recordings. The measure is the
balanced accuracy of the best guess by device alone, Σ_device max_class P(device | class) / classes.
Fitted and scored on the same patients it is above 1 / classes even if the device says nothing, so
it is compared with its values after permuting the diagnoses among the patients. Warned of if at
most `DEVICE_ALPHA` of the permutations reach it and it exceeds their mean by at least
`DEVICE_MARGIN`. Diagnoses of fewer than 5 patients are left out.

Age: the area under the ROC curve of COPD against Healthy by age, one age a patient. Children and
adults do have different illnesses, so only an area of at least `AGE_LEAST` is warned of, if at
most `AGE_ALPHA` of the permutations are as far from 0.5.

A result holds the name of the `measure`, its `value` on the data set, in 0…1, the mean of the
permutations (`by_chance`), their quantile 1 − alpha (`limit`), the share of them that reaches
`value` (`p_value`), the `classes`, the number of `patients`, whether a shortcut was `found`, and
the `warning` of it, if so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from resp_tune.data.dataset import Dataset
from resp_tune.data.split_spec import OUTER_FOLDS
from resp_tune.training.metrics import Floats, Labels

PERMUTATIONS = 10_000
DEVICE_ALPHA = 5e-4
DEVICE_MARGIN = 0.1
AGE_ALPHA = 0.05
AGE_LEAST = 0.95
SICK, WELL = "COPD", "Healthy"


def device_shortcut(dataset: Dataset) -> dict[str, Any] | None:
    """Test whether the device predicts the diagnosis; None with too few patients."""
    diagnosis = {r.patient: r.diagnosis for r in dataset.recordings}
    sizes = Counter(diagnosis.values())
    classes = tuple(sorted(name for name, n in sizes.items() if n >= OUTER_FOLDS))
    if len(classes) < 2:
        return None
    patients = sorted(p for p, name in diagnosis.items() if name in classes)
    rng = np.random.default_rng(0)
    devices = _one_device(dataset, patients, rng)
    members = np.eye(len(classes))[[classes.index(diagnosis[p]) for p in patients]]
    members /= members.sum(0)  # each class weighs the same, as in a balanced accuracy
    # The mean recall if each device predicts the class with the largest share of it.
    test = _permutation_test(
        lambda m: float((m.T @ devices).max(0).sum() / len(classes)), members, rng, DEVICE_ALPHA
    )
    large = test["value"] - test["by_chance"] >= DEVICE_MARGIN
    found = large and test["p_value"] <= DEVICE_ALPHA
    warning = (
        "shortcut: the device alone predicts the diagnosis well. The best guess by device has a "
        f"balanced accuracy of {test['value']:.3f} over the patients of {len(classes)} diagnoses, "
        f"where devices that say nothing give {test['by_chance']:.3f} (permutation p "
        f"{_small(test['p_value'])}): a model can score by hearing the stethoscope; compare it "
        "with the no-audio baselines"
    )
    return {
        "measure": "balanced accuracy of the best guess by device",
        **test,
        "classes": classes,
        "patients": len(patients),
        "found": found,
        "warning": warning if found else None,
    }


def age_shortcut(dataset: Dataset) -> dict[str, Any] | None:
    """Test whether age separates COPD from Healthy; None if either has no known age."""
    ages = {
        r.patient: (r.age, r.diagnosis)
        for r in dataset.recordings
        if r.age is not None and r.diagnosis in (SICK, WELL)
    }
    labels: Labels = np.array([d == SICK for _, d in ages.values()], dtype=np.int64)
    if len(set(labels.tolist())) < 2:
        return None
    from scipy.stats import rankdata  # slow to import

    ranks: Floats = rankdata([age for age, _ in ages.values()])
    rng = np.random.default_rng(0)
    test = _permutation_test(lambda sick: _either_way(sick, ranks), labels, rng, AGE_ALPHA)
    found = test["value"] >= AGE_LEAST and test["p_value"] <= AGE_ALPHA
    sick = int(labels.sum())
    warning = (
        f"shortcut: age alone separates {SICK} from {WELL}. Its AUROC is {test['value']:.3f} over "
        f"{sick} and {len(labels) - sick} patients (permutation p {_small(test['p_value'])}): a "
        "model can score by hearing how old a chest is"
    )
    return {
        "measure": f"AUROC of age, {SICK} against {WELL}",
        **test,
        "classes": (SICK, WELL),
        "patients": len(labels),
        "found": found,
        "warning": warning if found else None,
    }


def _one_device(dataset: Dataset, patients: list[str], rng: np.random.Generator) -> Floats:
    """Return the patients' commonest devices one-hot, `[patients, devices]`; ties are drawn.

    One device each, because patients with many recordings would otherwise look alike (a bit of
    every device) and could not be exchanged with those who have one.
    """
    names = sorted({r.device for r in dataset.recordings})
    row = {patient: i for i, patient in enumerate(patients)}
    used = np.zeros((len(patients), len(names)))
    for recording in dataset.recordings:
        if recording.patient in row:
            used[row[recording.patient], names.index(recording.device)] += 1
    commonest = (used + 0.5 * rng.random(used.shape)).argmax(1)
    one: Floats = np.eye(len(names))[commonest]
    return one


def _either_way(labels: Labels, ranks: Floats) -> float:
    """Return the area under the ROC curve (Mann–Whitney) in the direction that is above 0.5."""
    sick = labels.sum()
    least = sick * (sick + 1) / 2
    area = float((ranks[labels == 1].sum() - least) / (sick * (len(labels) - sick)))
    return max(area, 1 - area)


def _permutation_test(
    measure: Callable[[Any], float], rows: npt.NDArray[Any], rng: np.random.Generator, alpha: float
) -> dict[str, float]:
    """Return the figures of `measure(rows)`, where the data counts as one permutation."""
    value = measure(rows)
    permuted = [measure(rng.permutation(rows)) for _ in range(PERMUTATIONS)]
    reached = sum(p >= value - 1e-12 for p in permuted)
    return {
        "value": value,
        "by_chance": float(np.mean(permuted)),
        "limit": float(np.quantile(permuted, 1 - alpha)),
        "p_value": (1 + reached) / (1 + len(permuted)),
    }


def _small(p_value: float) -> str:
    return "< 0.0002" if p_value <= 1 / (1 + PERMUTATIONS) else f"{p_value:.4f}"
