"""Standardise pooled features and reduce them to what the training clips can tell apart.

There are fewer clips n than features d, mostly. All that depends on inner products of the training
clips, principal components and L2-regularised linear models, follows from their n × n Gram matrix.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch

from resp_tune.features.pooled_clips import PooledClips

# Of the largest eigenvalue: below, float64 rounding errors of the Gram matrix.
SMALLEST_EIGENVALUE = 1e-10
# Of the latest folds' matrices, in a process that runs many trials: four folds of 3,000 clips fit.
KEPT_BYTES = 1 << 30
BLOCK = 1024  # features that are converted to float64 at a time


@dataclass(frozen=True)
class Coordinates:
    """Training clips in a basis in which their weighted second moments are diagonal.

    `clips` float64 `[n, r]`; `moments` `[r]`: the diagonal of `clipsᵀ · diag(weight) · clips`.
    `origin` `[n, r]`: the basis, as combinations of the clips. None where it spans all clips: then
    it is `diag(weight) · clips / moments`, which need not be kept.
    """

    clips: torch.Tensor
    moments: torch.Tensor
    weight: torch.Tensor
    origin: torch.Tensor | None = None

    def combine(self, model: torch.Tensor) -> torch.Tensor:
        """Return a model `[r, classes]` in this basis as combinations of the clips, `[n, classes]`.

        `matrix.directions` of them is the model in terms of features.
        """
        if self.origin is not None:
            return self.origin @ model
        return self.weight[:, None] * (self.clips @ (model / self.moments[:, None]))


class TrainingMatrix:
    """What is computed of the training clips' standardised features X, `[clips, features]`.

    It does not keep the features: methods that need them get those that it was made from again.
    `mean` and `scale`, float32 `[features]`: a feature x becomes `(x − mean) · scale`, which has
    zero mean and unit standard deviation over the training clips. A feature that is constant there
    has the scale 0: it tells nothing, and elsewhere it could be any number of deviations away.
    """

    def __init__(self, features: PooledClips) -> None:
        blocks = [
            (block.mean(0), block.std(0, correction=0), block.abs().amax(0))
            for block in map(torch.Tensor.double, torch.split(features.values, BLOCK, dim=1))
        ]
        mean, sd, largest = (torch.cat(part) for part in zip(*blocks, strict=True))
        varies = sd > 1e-6 * largest  # more than rounding errors
        self.mean = mean.float()
        self.scale = torch.where(varies, 1 / sd.where(varies, torch.ones_like(sd)), 0.0).float()
        self.spans: dict[bytes, Coordinates] = {}  # by the weights of the clips: the latest
        self._gram: torch.Tensor | None = None
        self._components: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def nbytes(self) -> int:
        """Return the size of what is kept now."""
        kept = [self.mean, self.scale, *(self._components or ())]
        kept += [part for at in self.spans.values() for part in (at.clips, at.moments, at.weight)]
        kept += [] if self._gram is None else [self._gram]
        return sum(part.nbytes for part in kept)

    def standardised(self, features: PooledClips) -> torch.Tensor:
        """Return X, float32 `[clips, features]`."""
        return (features.values - self.mean) * self.scale

    def gram(self, features: PooledClips) -> torch.Tensor:
        """Return the Gram matrix X·Xᵀ, float64 `[clips, clips]`."""
        if self._gram is None:
            clips = len(features.values)
            gram = torch.zeros(clips, clips, dtype=torch.float64)
            for block in torch.split(self.standardised(features), BLOCK, dim=1):
                x = block.double()
                gram.addmm_(x, x.T)
            self._gram = gram  # only when it is whole: memory may run out before
        return self._gram

    def directions(self, features: PooledClips, weights: torch.Tensor) -> torch.Tensor:
        """Return `Xᵀ · weights`, float32 `[features, k]`, for weights `[clips, k]`."""
        return self.standardised(features).T @ weights.float()

    def principal(self, features: PooledClips, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the first `count` principal components: of the clips, and as directions.

        Float64 coordinates `[clips, k]` and the weights `[clips, k]` that `directions` makes unit
        vectors of. k is `count`, or less where the clips span fewer dimensions.
        """
        if self._components is None:
            self._components = eigenvectors(self.gram(features))
        values, vectors = (part[..., :count] for part in self._components)
        return vectors * values.sqrt(), vectors / values.sqrt()


def eigenvectors(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the eigenvalues above 0 of a positive matrix, descending, and their vectors."""
    if not len(matrix):  # all features are constant
        return matrix.new_zeros(0), matrix
    values, vectors = torch.linalg.eigh(matrix)
    values, vectors = values.flip(0), vectors.flip(1)
    kept = values > SMALLEST_EIGENVALUE * values[0].clamp(min=SMALLEST_EIGENVALUE)
    return values[kept], vectors[:, kept]


_MATRICES: OrderedDict[str, TrainingMatrix] = OrderedDict()


def training_matrix(features: PooledClips) -> TrainingMatrix:
    """Return what is known of a fold's training clips, computed once for all trials that have it.

    The folds used last are kept, up to `KEPT_BYTES`; what is computed later counts at the next
    call.
    """
    if features.key not in _MATRICES:
        _MATRICES[features.key] = TrainingMatrix(features)
    _MATRICES.move_to_end(features.key)
    while len(_MATRICES) > 1 and sum(m.nbytes for m in _MATRICES.values()) > KEPT_BYTES:
        _MATRICES.popitem(last=False)
    return _MATRICES[features.key]
