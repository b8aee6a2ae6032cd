"""Grow scikit-learn's random forests without the checks that each tree's public class makes.

A tree of a few distinct rows takes 50 µs to grow and a millisecond to check: a forest of 200 takes
0.02 s here and 0.25 s as `RandomForestClassifier`. The classes of `sklearn.tree` used here are
private; `pyproject.toml` bounds the versions, and `tests/test_sklearn_internals.py` compares every
prediction with the public class.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from resp_tune.training.metrics import Floats, Labels

MIN_LEAF = 3  # samples in a leaf
_MAX_SEED = np.iinfo(np.int32).max


@dataclass(frozen=True)
class Bootstraps:
    """What the trees of a forest are grown from, whatever the features are.

    `counts`: float64 `[trees, rows]`, how often each row was drawn for each tree; `codes`: float64
    `[rows, 1]`, indices of `classes`; `seeds`: of each tree.
    """

    classes: Labels
    codes: Floats
    seeds: Labels
    counts: Floats


def draw_bootstraps(labels: Labels, weights: Floats, seed: int, trees: int) -> Bootstraps:
    """Draw as `RandomForestClassifier(trees, class_weight="balanced", random_state=seed)` does.

    `labels` and `weights` are of each row. A row is drawn with a probability in proportion to its
    weight times its class's.
    """
    from sklearn.utils.class_weight import compute_class_weight  # slow to import

    classes, codes = np.unique(labels, return_inverse=True)
    of_class = compute_class_weight("balanced", classes=classes, y=labels, sample_weight=weights)
    drawn = weights * of_class[codes]
    # As `RandomState.choice(rows, rows, p=…)`, which searches the sum for each draw; here the draws
    # are sorted and searched for each row, as only the counts are needed.
    reached = (drawn / np.sum(drawn)).cumsum()
    reached /= reached[-1]
    seeds = np.random.RandomState(seed).randint(_MAX_SEED, size=trees)
    counts, random = np.empty((trees, len(labels))), np.random.RandomState()
    for row, tree_seed in zip(counts, seeds, strict=True):
        random.seed(tree_seed)
        draws = np.sort(random.random_sample(len(labels)))
        row[:] = np.diff(draws.searchsorted(reached), prepend=0)
    return Bootstraps(classes, codes.astype(np.float64)[:, None], seeds, counts)


def predict_forest(bootstraps: Bootstraps, train: Floats, test: Floats) -> Labels:
    """Return what a forest grown on `train` predicts for `test`, both `[rows, columns]`.

    The forest is `RandomForestClassifier(trees, min_samples_leaf=MIN_LEAF, …)` of the same seed.
    """
    from sklearn.tree._criterion import Gini
    from sklearn.tree._splitter import BestSplitter
    from sklearn.tree._tree import DepthFirstTreeBuilder, Tree

    # Many rows may have the same features: each is predicted once.
    distinct, inverse = np.unique(test, axis=0, return_inverse=True)
    rows, questions = np.asfortranarray(train, np.float32), np.ascontiguousarray(distinct, "f4")
    columns, sizes = rows.shape[1], np.array([len(bootstraps.classes)], dtype=np.intp)
    votes, random = np.zeros((len(questions), len(bootstraps.classes))), np.random.RandomState()
    for seed, counts in zip(bootstraps.seeds, bootstraps.counts, strict=True):
        random.seed(seed)
        considered = max(1, int(np.sqrt(columns)))  # at each split
        splitter = BestSplitter(Gini(1, sizes), considered, MIN_LEAF, 0.0, random, None)
        builder = DepthFirstTreeBuilder(splitter, 2 * MIN_LEAF, MIN_LEAF, 0.0, _MAX_SEED, 0.0)
        tree = Tree(columns, sizes, 1)
        builder.build(tree, rows, bootstraps.codes, counts, None)
        votes += tree.predict(questions)
    predicted: Labels = bootstraps.classes[votes.argmax(1)][inverse.ravel()]
    return predicted
