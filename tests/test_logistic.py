"""The regression on band statistics: the optimum of scikit-learn's, found in fewer steps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from resp_tune.errors import RunError
from resp_tune.evaluation import logistic
from resp_tune.evaluation.logistic import fit_logistic


def _correlated(rows: int, columns: int, seed: int) -> np.ndarray:
    """Standardised columns that are nearly multiples of a few others, as band statistics are."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 3)) @ rng.normal(size=(3, columns))
    x += 0.05 * rng.normal(size=(rows, columns))
    return np.asarray((x - x.mean(0)) / x.std(0))


@pytest.mark.parametrize("classes", [2, 3, 6])
@pytest.mark.parametrize(("rows", "columns"), [(200, 30), (40, 60)])
def test_the_same_optimum_as_scikit_learn(
    classes: int, rows: int, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logistic, "GRADIENT", 1e-8)
    x, rng = _correlated(rows, columns, classes), np.random.default_rng(1)
    labels = 3 * np.digitize(x[:, 0] + rng.normal(size=rows), np.linspace(-1, 1, classes - 1))
    weights = rng.uniform(0.1, 1.0, rows)
    model = LogisticRegression(C=0.7, tol=1e-9, max_iter=100_000)
    model.fit(x, labels, sample_weight=weights)
    found = fit_logistic(x, labels, weights, 0.7)
    np.testing.assert_allclose(found.coefficients.T, model.coef_, atol=1e-4)
    logits = x @ model.coef_.T + model.intercept_
    # All intercepts may shift by one constant, which no probability shows.
    shift = 0.0 if classes == 2 else logits.mean(1, keepdims=True)
    mine = x @ found.coefficients + found.intercepts
    mine = mine if classes == 2 else mine - mine.mean(1, keepdims=True)
    np.testing.assert_allclose(mine, logits - shift, atol=1e-3)
    np.testing.assert_array_equal(found.predict(x), model.predict(x))


@given(st.integers(0, 10_000), st.integers(2, 4), st.sampled_from([1e-6, 1.0, 1e6]))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_any_scale_has_an_optimum(seed: int, classes: int, scale: float) -> None:
    x, rng = _correlated(30, 5, seed), np.random.default_rng(seed)
    x[:, 0] = 0.0  # a constant column
    labels = np.resize(np.arange(classes), 30)
    found = fit_logistic(x * scale, labels, rng.uniform(0, 1, 30) + 1e-3, 1.0)
    assert np.isfinite(found.coefficients).all()
    assert set(found.predict(x * scale)) <= set(labels)


def test_no_optimum_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logistic, "MAX_STEPS", 1)
    with pytest.raises(RunError, match="has no optimum"):
        fit_logistic(_correlated(50, 5, 0), np.resize([0, 1], 50), np.ones(50), 1.0)
