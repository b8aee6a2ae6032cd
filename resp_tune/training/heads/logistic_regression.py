"""Fit a multinomial logistic regression with an L2 penalty to few clips of many features.

scikit-learn's takes 10 to 100 times as long at these sizes, and a bare host does not have it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn.functional import one_hot

from resp_tune.features.pooled_clips import PooledClips
from resp_tune.training.heads.reduction import Coordinates, TrainingMatrix, eigenvectors

# Of the gradient in coordinates of unit curvature: probabilities are then within .001 of the
# optimum's, far less than folds and seeds move them.
TOLERANCE = 1e-5
MOST_STEPS = 500


def coordinates(
    matrix: TrainingMatrix, features: PooledClips, weight: torch.Tensor, pca: int
) -> Coordinates:
    """Return the coordinates of the clips of `matrix` with weights `[n]`, all above 0.

    They are within the span of the first `pca` principal components or, with 0, of all clips:
    outside of it an L2-regularised model has no part (the representer theorem).
    """
    if not pca:
        key = weight.numpy().tobytes()
        if key not in matrix.spans:
            matrix.spans = {key: _in_the_span(matrix.gram(features), weight)}
        return matrix.spans[key]
    clips, origin = matrix.principal(features, pca)
    values, vectors = eigenvectors(clips.T @ (weight[:, None] * clips))
    return Coordinates(clips @ vectors, values, weight, origin @ vectors)


def _in_the_span(gram: torch.Tensor, weight: torch.Tensor) -> Coordinates:
    root = weight.sqrt()[:, None]
    values, vectors = eigenvectors(root * gram * root.T)
    return Coordinates(vectors * values.sqrt() / root, values, weight)


@dataclass(frozen=True)
class LinearFit:
    """A fitted model: `weights` `[r, classes]`, `bias` `[classes]`, both float64.

    `loss` is the weighted mean of the clips' cross entropy, without the penalty.
    """

    weights: torch.Tensor
    bias: torch.Tensor
    loss: float


def fit_logistic_regression(
    at: Coordinates, labels: torch.Tensor, weight: torch.Tensor, classes: int, c: float
) -> LinearFit:
    """Minimise `½·‖W‖² + c · Σ weight · cross entropy` over the clips, as scikit-learn does.

    Each class has weights. Of two classes scikit-learn keeps the difference alone, which has half
    the penalty: its model with `C = 2c` is the same.

    L-BFGS in float64, in coordinates in which the Hessian's bound of Böhning (1992),
    `1 + c · (1 − 1/K)/K · moments` but for a factor, is the identity: the classes' weights and the
    features' variances would otherwise spread its eigenvalues over many orders of magnitude.
    """
    bound = 2 * c * (1 - 1 / classes) / classes
    scale = torch.cat([(1 + bound * at.moments).rsqrt(), (bound * weight.sum()).rsqrt()[None]])
    x = torch.cat([at.clips, torch.ones(len(labels), 1, dtype=torch.float64)], dim=1) * scale
    transposed, truth = x.T.contiguous(), one_hot(labels, classes).double()
    penalty = torch.cat([scale[:-1].square(), torch.zeros(1, dtype=torch.float64)])[:, None]
    model = torch.zeros(x.shape[1], classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [model],
        max_iter=MOST_STEPS,
        history_size=10,
        tolerance_grad=TOLERANCE * (c * len(labels)) ** 0.5,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    @torch.no_grad()
    def evaluate() -> torch.Tensor:
        log_p = (x @ model).log_softmax(1)
        residual = weight[:, None] * (log_p.exp() - truth)
        model.grad = penalty * model + c * (transposed @ residual)
        return 0.5 * (penalty * model.square()).sum() - c * weight @ (log_p * truth).sum(1)

    optimizer.step(evaluate)  # type: ignore[no-untyped-call]  # torch's own
    with torch.no_grad():
        entropy = -((x @ model).log_softmax(1) * truth).sum(1)
        fitted = model.detach() * scale[:, None]
        loss = float(weight @ entropy / weight.sum())
    return LinearFit(fitted[:-1], fitted[-1], loss)
