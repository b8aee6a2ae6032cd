"""Heads on pooled features: compared with scikit-learn, resumed to the same bits, safe to save."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from support.features import CLASSES, FEATURES, feature_folds, head_config, pooled, toy_features
from support.toy import toy_data

from resp_tune.common.choices import FoldOrder
from resp_tune.features.pooled_clips import PooledClips
from resp_tune.training.balance import patient_weights
from resp_tune.training.fold_training import TrainingData
from resp_tune.training.heads import reduction
from resp_tune.training.heads.head_fold import predict_head
from resp_tune.training.heads.head_network import HeadNetwork, empty_head
from resp_tune.training.heads.logistic_regression import coordinates, fit_logistic_regression
from resp_tune.training.heads.reduction import TrainingMatrix
from resp_tune.training.loop import Training, resume, save_checkpoint

HEADS = {
    "linear": {"head": "linear"},
    "linear pca": {"head": "linear", "pca": 20},
    "mlp": {"head": "mlp", "dropout": 0.2},
    "mlp pca": {"head": "mlp", "pca": 20, "feature_noise": 0.3},
    "mlp average": {"head": "mlp", "ema": 0.9, "mixup": 0.4, "pca": 1000},
}


def run(training: Training) -> Training:
    while not training.done:
        training.run_epoch()
    return training


def reference(data: TrainingData, c: float, pca: int) -> np.ndarray:
    """The validation probabilities of scikit-learn's model on the same clips and weights."""
    train, validation = (s.clips.values.numpy() for s in (data.train, data.validation))  # type: ignore[union-attr]
    scaler = StandardScaler().fit(train.astype(np.float64))
    x, other = scaler.transform(train), scaler.transform(validation)
    if pca:
        reduction = PCA(pca, svd_solver="full").fit(x)
        x, other = reduction.transform(x), reduction.transform(other)
    labels = data.train.labels
    weight = patient_weights(labels, data.train.groups["patient"]).numpy()
    model = LogisticRegression(C=c, tol=1e-9, max_iter=20_000).fit(x, labels, weight)
    return model.predict_proba(other)


@pytest.mark.parametrize("c", [1e-6, 1e-3, 1e-1, 10.0])
@pytest.mark.parametrize("pca", [0, 4])
def test_the_linear_head_is_scikit_learns_logistic_regression(c: float, pca: int) -> None:
    data = feature_folds()[0]
    training = run(Training(head_config(head_c=c, pca=pca, epochs=1), [data]))
    found = training.predict_validation()[0]
    np.testing.assert_allclose(found, reference(data, c, pca), atol=2e-3)


def test_two_classes_have_half_scikit_learns_penalty() -> None:
    draws = np.random.default_rng(0)
    x, labels = draws.normal(size=(40, 60)).astype(np.float32), np.arange(40) % 2
    features, weight = PooledClips(torch.from_numpy(x), "two classes"), torch.ones(40).double()
    matrix = TrainingMatrix(features)
    at = coordinates(matrix, features, weight, 0)
    fit = fit_logistic_regression(at, torch.from_numpy(labels), weight, 2, 0.1)
    found = (at.clips @ fit.weights + fit.bias).softmax(1).numpy()
    scaled = StandardScaler().fit_transform(x)
    theirs = LogisticRegression(C=0.2, tol=1e-9, max_iter=20_000).fit(scaled, labels)
    np.testing.assert_allclose(found, theirs.predict_proba(scaled), atol=2e-3)


def test_more_components_than_the_clips_have_are_all() -> None:
    data = feature_folds()[0]
    every, more = (
        run(Training(head_config(epochs=1, pca=pca), [data])).predict_validation()[0]
        for pca in (0, 4000)
    )
    np.testing.assert_allclose(more, every, atol=2e-3)


def test_classes_and_patients_weigh_the_same() -> None:
    labels = torch.tensor([0, 0, 0, 0, 1, 1])
    patients = np.array([0, 0, 0, 1, 2, 2])
    weight = patient_weights(labels, patients)
    assert weight.sum() == pytest.approx(6)
    assert weight[labels == 0].sum() == pytest.approx(3)
    assert weight[:3].sum() == pytest.approx(float(weight[3]))
    assert torch.equal(weight[4], weight[5])
    balanced = patient_weights(labels)
    assert balanced.tolist() == pytest.approx([0.75] * 4 + [1.5] * 2)


def test_a_patient_with_cycles_of_several_classes_weighs_in_each() -> None:
    labels = torch.tensor([0, 0, 1, 0])
    weight = patient_weights(labels, np.array([0, 0, 0, 1]))
    assert weight.tolist() == pytest.approx([0.5, 0.5, 2.0, 1.0])


def test_a_linear_head_is_fitted_once_and_keeps_its_figures() -> None:
    training = run(Training(head_config(epochs=3), feature_folds(2), order="sequence"))
    assert [e.epoch for e in training.history] == [1, 2, 3, 4, 5, 6]
    assert [e.fold for e in training.history] == [0, 0, 0, 1, 1, 1]
    first = training.history[:3]
    assert len({tuple(e.metrics.items()) for e in first}) == 1
    assert len({e.train_loss for e in first}) == 1
    assert first[0].lr == 0, "no step is taken"


@pytest.mark.parametrize("values", HEADS.values(), ids=HEADS)
def test_heads_learn_and_resume_to_the_same_bits(values: dict[str, object], tmp_path: Path) -> None:
    config, folds = head_config(**{"epochs": 6, **values}), feature_folds(2)
    whole = run(Training(config, folds))
    assert whole.history[-1].metrics["balanced_accuracy"] > 0.6
    half = Training(config, folds)
    for _ in range(2):
        half.run_epoch()
    save_checkpoint(tmp_path / "checkpoint.pt", half)
    again = Training(config, folds)
    assert resume(again, tmp_path / "checkpoint.pt") is None
    run(again)
    for one, other in zip(whole.networks(), again.networks(), strict=True):
        for name, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name
    assert [e.metrics for e in whole.history] == [e.metrics for e in again.history]


def in_networks(state: dict[str, Any]) -> list[str]:
    """The names of all tensors of the networks in a checkpoint, of all folds."""
    folds, names = state["folds"], ("network", "trained")
    return [key for fold in folds for name in names for key in fold.get(name, ())]


@pytest.mark.parametrize("average", [0.0, 0.9])
@pytest.mark.parametrize("order", ["together", "sequence"])
def test_checkpoints_hold_no_components(average: float, order: FoldOrder, tmp_path: Path) -> None:
    """They would be most of it: features by components, while the clips are few."""
    config, folds = head_config(head="mlp", pca=20, ema=average), feature_folds(2)
    whole, half, again = (Training(config, folds, order=order) for _ in range(3))
    run(whole)
    half.run_epoch()
    save_checkpoint(tmp_path / "checkpoint.pt", half)
    saved = in_networks(torch.load(tmp_path / "checkpoint.pt", weights_only=True))
    assert saved.count("mean") == 2 * (1 + bool(average))
    assert "components" not in saved
    assert resume(again, tmp_path / "checkpoint.pt") is None
    for one, other in zip(half.folds, again.folds, strict=True):
        assert torch.equal(one.evaluated.components, other.evaluated.components)
    assert half.folds[0].evaluated.components.abs().sum() > 0
    for one, other in zip(whole.networks(), run(again).networks(), strict=True):
        for name, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_a_checkpoint_with_components_resumes(average: float) -> None:
    """Of a version that saved them; also when it is saved once more."""
    config, folds = head_config(head="mlp", pca=20, ema=average), feature_folds()
    whole, half, again, later = (Training(config, folds) for _ in range(4))
    run(whole)
    half.run_epoch()
    state = half.state()
    fold = state["folds"][0]
    for name in fold.keys() & {"network", "trained"}:
        fold[name]["components"] = half.folds[0].evaluated.components
    del fold["component_weights"]
    again.load_state(state)
    assert "components" in in_networks(again.state())
    later.load_state(again.state())
    np.testing.assert_array_equal(run(later).predict_validation()[0], whole.predict_validation()[0])


@pytest.mark.parametrize(
    ("pca", "hidden", "compact"), [(20, 8, True), (20, 20, False), (0, 8, False)]
)
def test_networks_of_bundles_are_small(pca: int, hidden: int, compact: bool) -> None:
    folds = feature_folds()
    training = run(Training(head_config(head="mlp", pca=pca, hidden=hidden), folds))
    (network,) = training.networks()
    assert isinstance(network, HeadNetwork)
    assert (network.components is None) == (compact or not pca)
    if compact:
        assert network.hidden_layer.weight.shape == (hidden, FEATURES)
    assert not network.training
    features = folds[0].validation.clips
    assert isinstance(features, PooledClips)
    np.testing.assert_allclose(
        predict_head(network, features), training.predict_validation()[0], atol=1e-5
    )


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_folds_in_sequence_give_the_same_networks(head: str) -> None:
    config, folds = head_config(head=head), feature_folds(2)
    together, sequence = (run(Training(config, folds, order=o)) for o in ("together", "sequence"))
    for one, other in zip(
        together.predict_validation(), sequence.predict_validation(), strict=True
    ):
        np.testing.assert_array_equal(one, other)
    last = (t.history[-1].metrics["macro_f1"] for t in (together, sequence))
    assert next(last) == pytest.approx(next(last))


def test_seeds_make_other_mlps_and_the_same_linear_head() -> None:
    for head, equal in (("linear", True), ("mlp", False)):
        one, other = (
            run(Training(head_config(head=head, seed=s), feature_folds())).predict_validation()[0]
            for s in (0, 1)
        )
        assert np.array_equal(one, other) is equal


def test_micro_batches_add_up_to_the_batch() -> None:
    """A head has no batch statistics, so the parts of a batch give the gradient of the whole."""
    whole, parts = (
        run(Training(head_config(head="mlp", dropout=0.0, micro_batch=m), feature_folds()))
        for m in (None, 2)
    )
    np.testing.assert_allclose(
        whole.predict_validation()[0], parts.predict_validation()[0], atol=1e-4
    )


def test_a_feature_that_is_constant_in_training_counts_for_nothing() -> None:
    data = feature_folds()[0]
    far = data.validation.clips.values.clone()  # type: ignore[union-attr]
    far[:, -1] = 1e6
    moved = dataclasses.replace(data.validation, clips=pooled(far))
    for head in ("linear", "mlp"):
        config = head_config(head=head)
        found = run(Training(config, [data])).predict_validation()[0]
        other = dataclasses.replace(data, validation=moved)
        np.testing.assert_array_equal(found, run(Training(config, [other])).predict_validation()[0])


def test_features_that_are_all_constant_give_the_balanced_prior() -> None:
    train = toy_features(16, 0)
    same = dataclasses.replace(train, clips=pooled(torch.ones(16, 5)))
    for pca in (0, 3):
        config = head_config(epochs=1, pca=pca)
        training = run(Training(config, [TrainingData(same, same, CLASSES)]))
        np.testing.assert_allclose(training.predict_validation()[0], 1 / 3, atol=1e-3)


def test_components_are_those_of_the_training_clips() -> None:
    data = feature_folds()[0]
    values = data.train.clips.values.numpy().astype(np.float64)  # type: ignore[union-attr]
    x = StandardScaler().fit_transform(values)
    expected = PCA(3, svd_solver="full").fit_transform(x)
    features = data.train.clips
    assert isinstance(features, PooledClips)
    matrix = TrainingMatrix(features)
    clips, weights = matrix.principal(features, 3)
    np.testing.assert_allclose(np.abs(clips.numpy()), np.abs(expected), atol=1e-3)
    directions = matrix.directions(features, weights)
    assert directions.shape == (FEATURES, 3)
    np.testing.assert_allclose((directions.T @ directions).numpy(), np.eye(3), atol=1e-4)
    beyond, _ = matrix.principal(features, 60)
    assert beyond.shape == (40, 39)


def test_the_matrix_of_a_fold_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    computed = []
    original = TrainingMatrix.__init__

    def counted(self: TrainingMatrix, features: PooledClips) -> None:
        computed.append(features.key)
        original(self, features)

    monkeypatch.setattr(TrainingMatrix, "__init__", counted)
    monkeypatch.setattr(reduction, "_MATRICES", OrderedDict())
    for values in ({"head_c": 0.1}, {"head_c": 0.2}, {"head": "mlp"}):
        run(Training(head_config(epochs=1, **values), feature_folds(2)))
    assert len(computed) == len(set(computed)) == 2
    clips = len(feature_folds(2)[0].train.labels)
    for matrix in reduction._MATRICES.values():  # a Gram matrix and coordinates, both in float64
        assert 2 * 8 * clips * (clips - 1) <= matrix.nbytes <= 3 * 8 * clips * clips


def test_only_the_matrices_used_last_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that have grown: an MLP needs no Gram matrix, and a linear head does."""
    monkeypatch.setattr(reduction, "_MATRICES", OrderedDict())
    run(Training(head_config(epochs=1, head="mlp"), feature_folds(3)))
    assert len(reduction._MATRICES) == 3
    monkeypatch.setattr(reduction, "KEPT_BYTES", 60_000)
    run(Training(head_config(epochs=1), feature_folds(3)))
    features = feature_folds(3)[2].train.clips
    assert isinstance(features, PooledClips)
    reduction.training_matrix(features)
    kept = sum(matrix.nbytes for matrix in reduction._MATRICES.values())
    assert kept <= 60_000 or len(reduction._MATRICES) == 1
    assert len(reduction._MATRICES) < 3


def test_memory_that_runs_out_leaves_no_part_of_a_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reduction, "_MATRICES", OrderedDict())
    expected = run(Training(head_config(epochs=1), feature_folds(1))).history[-1].metrics
    monkeypatch.setattr(reduction, "_MATRICES", OrderedDict())
    original, calls = TrainingMatrix.standardised, []

    def fails_once(self: TrainingMatrix, features: PooledClips) -> torch.Tensor:
        calls.append(features.key)
        if len(calls) == 1:
            raise RuntimeError("can't allocate memory")
        return original(self, features)

    monkeypatch.setattr(TrainingMatrix, "standardised", fails_once)
    with pytest.raises(RuntimeError, match="allocate"):
        run(Training(head_config(epochs=1), feature_folds(1)))
    assert run(Training(head_config(epochs=1), feature_folds(1))).history[-1].metrics == expected


def test_an_mlp_without_pca_needs_no_gram_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    def unexpected(self: TrainingMatrix, features: PooledClips) -> None:
        raise AssertionError("takes seconds for thousands of clips")

    monkeypatch.setattr(TrainingMatrix, "gram", unexpected)
    monkeypatch.setattr(reduction, "_MATRICES", OrderedDict())
    run(Training(head_config(epochs=1, head="mlp"), feature_folds(2)))
    with pytest.raises(AssertionError, match="takes seconds"):
        run(Training(head_config(epochs=1, head="mlp", pca=3), feature_folds(2)))


def test_a_head_refuses_frames_and_a_network_features() -> None:
    with pytest.raises(TypeError, match="a head needs pooled features"):
        Training(head_config(), [toy_data(head_config())])
    with pytest.raises(TypeError, match="a network needs frames"):
        Training(head_config(encoder="none"), feature_folds())


def test_one_batch_is_tried() -> None:
    for head in ("linear", "mlp"):
        Training(head_config(head=head, pca=3), feature_folds()).try_one_batch()


@pytest.mark.parametrize("pca", [5, 20])  # fewer and more than hidden units
def test_a_saved_head_has_the_sizes_of_its_weights(pca: int) -> None:
    config = head_config(head="mlp", pca=pca, hidden=8)
    network = run(Training(config, feature_folds())).networks()[0]
    loaded = empty_head(config, network.state_dict(), len(CLASSES))
    loaded.load_state_dict(network.state_dict())
    assert isinstance(network, HeadNetwork)
    features = feature_folds()[0].validation.clips.values  # type: ignore[union-attr]
    assert torch.equal(loaded.eval()(features), network.eval()(features))
    with pytest.raises(ValueError, match="not those of a head"):
        empty_head(config, {"output.weight": torch.zeros(3, 8)}, len(CLASSES))
