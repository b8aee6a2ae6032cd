"""Metrics against scikit-learn's, on random and degenerate cases, and the ICBHI score by hand."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from sklearn.utils.class_weight import compute_sample_weight

from resp_tune.common.choices import METRIC_NAMES
from resp_tune.training import metrics
from resp_tune.training.metrics import METRICS, Labels, Probabilities


def sk_macro_f1(labels: Labels, p: Probabilities) -> float:
    present = np.unique(labels)
    return float(sk.f1_score(labels, p.argmax(1), labels=present, average="macro", zero_division=0))


def sk_auroc(labels: Labels, p: Probabilities) -> float:
    areas = [sk.roc_auc_score(labels == c, p[:, c]) for c in np.unique(labels)]
    return float(np.mean(areas))


def sk_icbhi(labels: Labels, p: Probabilities) -> float:
    right = p.argmax(1) == labels
    terms = [np.mean(right[side]) for side in (labels == 0, labels > 0) if side.any()]
    return float(np.mean(terms))


def sk_recall(labels: Labels, p: Probabilities, pooled: list[int]) -> float:
    answer = p.argmax(1)
    return float(
        sk.recall_score(labels, answer, labels=pooled, average="micro", zero_division=np.nan)
    )


ORACLES: dict[str, Callable[[Labels, Probabilities], float]] = {
    "macro_f1": sk_macro_f1,
    "balanced_accuracy": lambda y, p: float(sk.balanced_accuracy_score(y, p.argmax(1))),
    "mcc": lambda y, p: float(sk.matthews_corrcoef(y, p.argmax(1))),
    "auroc": sk_auroc,
    "log_loss": lambda y, p: float(sk.log_loss(y, p, labels=range(p.shape[1]))),
    "balanced_log_loss": lambda y, p: float(
        sk.log_loss(
            y, p, labels=range(p.shape[1]), sample_weight=compute_sample_weight("balanced", y)
        )
    ),
    "accuracy": lambda y, p: float(sk.accuracy_score(y, p.argmax(1))),
    "icbhi_score": sk_icbhi,
    "sensitivity": lambda y, p: sk_recall(y, p, list(range(1, p.shape[1]))),
    "specificity": lambda y, p: sk_recall(y, p, [0]),
}


def random_case(
    seed: int, *, n: int = 60, classes: int = 5, ties: bool = False
) -> tuple[Labels, Probabilities]:
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(classes), n)
    if ties:
        p = np.round(p * 4) / 4 + 1e-3
        p /= p.sum(1, keepdims=True)
    labels = np.where(rng.random(n) < 0.4, p.argmax(1), rng.integers(classes, size=n))
    return labels.astype(np.int64), p.astype(np.float32)


def absent(labels: Labels, missing: int) -> Labels:
    return np.where(labels == missing, (missing + 1) % 5, labels)


def compute(name: str, labels: Labels, p: Probabilities) -> float:
    return metrics.compute_metrics(labels, p, [name])[name]


CASES = {
    **{f"random {seed}": random_case(seed) for seed in range(5)},
    "two classes": random_case(5, classes=2),
    "many ties": random_case(6, ties=True),
    "one answer for all": (
        random_case(7)[0],
        np.array([[0.5, 0.2, 0.1, 0.1, 0.1]] * 60, dtype=np.float32),
    ),
    "first class absent": (absent(random_case(8)[0], 0), random_case(8)[1]),
    "last class absent": (absent(random_case(9)[0], 4), random_case(9)[1]),
    "all right": (np.arange(60) % 5, np.eye(5, dtype=np.float32)[np.arange(60) % 5]),
    "all wrong": (np.arange(60) % 5, np.eye(5, dtype=np.float32)[(np.arange(60) + 1) % 5]),
    "two items": random_case(11, n=2),
}


@pytest.mark.parametrize("name", METRIC_NAMES)
@pytest.mark.parametrize("case", CASES)
def test_equals_scikit_learn(case: str, name: str) -> None:
    labels, p = CASES[case]
    with warnings.catch_warnings():
        # Of classes that are predicted and never true, and of probabilities that need clipping.
        warnings.simplefilter("ignore")
        expected = ORACLES[name](labels, p)
    found = compute(name, labels, p)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-6, nan_ok=True)


def test_one_class_alone() -> None:
    """scikit-learn has no area for it; ours is that of a coin, and every figure is finite."""
    labels = np.zeros(9, dtype=np.int64)
    p = random_case(0, n=9)[1]
    assert compute("auroc", labels, p) == 0.5
    assert compute("mcc", labels, p) == 0.0
    share = float((p.argmax(1) == 0).mean())
    assert compute("balanced_accuracy", labels, p) == compute("accuracy", labels, p) == share
    assert compute("icbhi_score", labels, p) == share
    assert compute("macro_f1", labels, p) == pytest.approx(2 * share / (1 + share))


def test_icbhi_score_by_hand() -> None:
    """Ten normal, crackle 6, wheeze 3, both 1; rows are the true class.

    Sp = 7/10. Se = (3 + 2 + 0) / 10: a crackle called `both` is wrong although it is abnormal.
    """
    matrix = [[7, 2, 1, 0], [1, 3, 1, 1], [1, 0, 2, 0], [0, 1, 0, 0]]
    labels = np.repeat(np.arange(4), [10, 6, 3, 1])
    predicted = np.concatenate([np.repeat(np.arange(4), row) for row in matrix])
    p = np.eye(4, dtype=np.float32)[predicted]
    assert compute("specificity", labels, p) == pytest.approx(7 / 10)
    assert compute("sensitivity", labels, p) == pytest.approx(5 / 10)
    assert compute("icbhi_score", labels, p) == pytest.approx((7 / 10 + 5 / 10) / 2)
    always_normal = np.eye(4, dtype=np.float32)[np.zeros(20, dtype=int)]
    assert compute("icbhi_score", labels, always_normal) == 0.5
    abnormal = labels > 0
    assert compute("icbhi_score", labels[abnormal], p[abnormal]) == pytest.approx(0.5)


CYCLES = ("normal", "crackle", "wheeze", "both")


def test_the_icbhi_score_and_its_halves_are_for_cycles_alone() -> None:
    labels, p = random_case(0, classes=4)
    cycles = metrics.all_metrics(labels, p, CYCLES)
    diagnoses = metrics.all_metrics(labels, p, ("COPD", "Healthy", "URTI", "Pneumonia"))
    assert set(cycles) == set(METRIC_NAMES)
    assert set(diagnoses) == set(METRIC_NAMES) - {"icbhi_score", "sensitivity", "specificity"}
    assert all(cycles[name] == value for name, value in diagnoses.items())
    halves = cycles["sensitivity"], cycles["specificity"]
    assert cycles["icbhi_score"] == pytest.approx(np.mean(halves))


def test_groups_are_pooled_by_their_mean_logarithm() -> None:
    labels, p = random_case(3, n=40)
    group = np.random.default_rng(0).integers(0, 9, 40) * 7  # numbers need not follow each other
    labels = group % 5
    own, pooled = metrics.pool(labels, p, group)
    for row, number in enumerate(sorted(set(group.tolist()))):
        mean = np.log(np.clip(p[group == number].astype(float), metrics.SMALLEST, 1)).mean(0)
        np.testing.assert_allclose(pooled[row], np.exp(mean) / np.exp(mean).sum())
        assert own[row] == number % 5
    alone = metrics.pool(labels, p, np.arange(40))
    np.testing.assert_allclose(alone[1], p / p.sum(1, keepdims=True), rtol=1e-5, atol=1e-6)


def test_metrics_of_sessions_and_patients_stand_beside_those_of_recordings() -> None:
    labels, p = random_case(0, classes=4)
    classes = ("COPD", "Healthy", "URTI", "Pneumonia")
    labels = np.sort(labels)
    groups = {"session": np.arange(len(labels)), "patient": labels * 2}
    found = metrics.all_metrics(labels, p, classes, groups)
    assert found.keys() == METRICS.keys() - {"icbhi_score", "sensitivity", "specificity"}
    assert found["session_macro_f1"] == found["macro_f1"]
    own, pooled = metrics.pool(labels, p, groups["patient"])
    assert found["patient_auroc"] == compute("auroc", own, pooled)
    assert metrics.all_metrics(labels, p, CYCLES, groups).keys() == set(METRIC_NAMES)
    assert METRICS["patient_log_loss"] == METRICS["log_loss"]


def test_a_diagnosis_may_be_called_normal() -> None:
    labels, p = random_case(0, classes=3)
    for classes, cycles in (
        (("normal", "wheeze", "both"), True),
        (("normal", "COPD", "wheeze"), False),
        (("wheeze", "normal", "both"), False),
    ):
        found = metrics.all_metrics(labels, p, classes)
        assert (metrics.are_cycles(classes), "icbhi_score" in found) == (cycles, cycles)


def test_what_is_not_defined_is_not_there() -> None:
    """Within one device there may be no normal cycle, or no other."""
    labels, p = random_case(0, classes=4)
    for side, left in ((labels == 0, "specificity"), (labels != 0, "sensitivity")):
        found = metrics.all_metrics(labels[side], p[side], CYCLES)
        assert found.keys() & {"sensitivity", "specificity"} == {left}
        assert found["icbhi_score"] == found[left]
        assert all(math.isfinite(value) for value in found.values())


@pytest.mark.parametrize("name", ["log_loss", "balanced_log_loss"])
def test_a_probability_of_zero_costs_a_finite_amount(name: str) -> None:
    labels, p = np.array([0, 1]), np.array([[0, 1], [1, 0]], dtype=np.float32)
    assert compute(name, labels, p) == METRICS[name].worst
    assert math.isfinite(METRICS[name].worst)


def test_the_balanced_log_loss_is_the_mean_over_classes() -> None:
    """Nine items of one class and one of another count the same; a third has no item."""
    labels = np.array([0] * 9 + [1])
    p = np.array([[0.5, 0.3, 0.2]] * 10, dtype=np.float32)
    expected = -(math.log(0.5) + math.log(0.3)) / 2
    assert compute("balanced_log_loss", labels, p) == pytest.approx(expected)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.integers(2, 6), st.booleans())
def test_worst_is_worst(seed: int, n: int, classes: int, ties: bool) -> None:
    labels, p = random_case(seed, n=n, classes=classes, ties=ties)
    for name, value in metrics.all_metrics(labels, p, ("normal",) * classes).items():
        metric = METRICS[name]
        assert math.isfinite(value)
        assert value >= metric.worst if metric.mode == "max" else value <= metric.worst + 1e-9


def test_majority_accuracy() -> None:
    assert metrics.majority_accuracy(np.array([2, 2, 0, 2, 1])) == 0.6
