"""The private parts of scikit-learn: forests grown with them equal the public class's."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier

from resp_tune.evaluation.sklearn_internals import MIN_LEAF, draw_bootstraps, predict_forest
from resp_tune.training.metrics import Floats, Labels

WHAT_TO_DO = """
This version of scikit-learn differs from 1.9 in a part that resp_tune relies on and scikit-learn
does not promise. Keep the upper bound in pyproject.toml at the last version that passes, then:
1. compare `_parallel_build_trees` and `BaseForest.fit` of sklearn/ensemble/_forest.py (how rows are
   drawn) and `BaseDecisionTree._fit` of sklearn/tree/_classes.py (how a tree is grown) with
   resp_tune/evaluation/sklearn_internals.py, the only file that uses such parts, and mend it;
2. if forests of the same seed have changed in scikit-learn itself, run
   `bash scripts/test -m "slow or thorough" tests/test_baselines.py` for the reference table;
3. raise the bound.
"""


def _rows(kind: str, classes: int, rows: int) -> tuple[Floats, Labels, Floats]:
    """Features as the audit has them: few distinct rows of a one-hot code, or all different."""
    rng = np.random.default_rng(classes)
    labels = np.sort(rng.integers(0, classes, rows)) * 2
    weights = 1 / rng.integers(1, 9, rows)
    if kind == "device":
        return np.eye(4)[(labels // 2 + rng.integers(0, 2, rows)) % 4], labels, weights
    age = rng.integers(1, 80, (rows, 1)).astype(np.float64)
    if kind == "metadata":
        return np.hstack([np.eye(3)[rng.integers(0, 3, rows)], age]), labels, weights
    return rng.normal(labels[:, None], 2.0, (rows, 5)), labels, weights


@pytest.mark.parametrize("kind", ["device", "metadata", "bands"])
@pytest.mark.parametrize(("classes", "rows"), [(1, 12), (2, 40), (5, 300)])
def test_against_the_public_class(kind: str, classes: int, rows: int) -> None:
    x, labels, weights = _rows(kind, classes, rows)
    train, test = np.arange(rows) % 4 > 0, np.arange(rows) % 4 == 0
    for seed in range(3):
        forest = RandomForestClassifier(
            30, min_samples_leaf=MIN_LEAF, class_weight="balanced", random_state=seed
        )
        forest.fit(x[train], labels[train], sample_weight=weights[train])
        bootstraps = draw_bootstraps(labels[train], weights[train], seed, 30)
        found = predict_forest(bootstraps, x[train], x[test])
        np.testing.assert_array_equal(found, forest.predict(x[test]), err_msg=WHAT_TO_DO)
