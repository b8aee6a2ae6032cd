"""The operating point of breathing cycles: chosen on validation, kept with the model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.audits import few_trees
from support.bundles import save_networks
from support.instant import search_here, small_spec
from support.toy import CLASSES, toy_config, toy_folds, toy_side

from resp_tune.errors import UserError
from resp_tune.evaluation.score import choose_normal_offset
from resp_tune.training.loop import Training
from resp_tune.training.metrics import compute_metrics
from resp_tune.training.model_bundle import load_bundle, log_offsets, move


def icbhi(labels: np.ndarray, probabilities: np.ndarray) -> float:
    return compute_metrics(labels, probabilities, ["icbhi_score"])["icbhi_score"]


@pytest.mark.parametrize("seed", range(40))
def test_no_other_offset_scores_higher(seed: int) -> None:
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, 4, 60)
    probabilities = draw.dirichlet(np.ones(4), 60).astype(np.float32)
    if seed % 2:  # many ties
        probabilities = probabilities.round(1) + np.float32(0.025)
    offset = choose_normal_offset(labels, probabilities)
    reached = icbhi(labels, move(probabilities, np.array([offset, 0, 0, 0])))
    for other in np.linspace(-6, 6, 400):
        tried = move(probabilities, np.array([other, 0, 0, 0]))
        assert icbhi(labels, tried) <= reached + 1e-9
    assert reached >= icbhi(labels, probabilities)


def test_a_perfect_prediction_is_left_as_it_is() -> None:
    labels = np.array([0, 1, 2, 3])
    assert choose_normal_offset(labels, np.eye(4, dtype=np.float32)) == 0.0


def test_moved_probabilities_are_probabilities() -> None:
    probabilities = np.array([[1, 0, 0], [0.2, 0.3, 0.5]], dtype=np.float32)
    moved = move(probabilities, np.array([1.0, 0.0, 0.0]))
    weights = probabilities[1] * [np.e, 1, 1]
    assert moved == pytest.approx(np.array([[1, 0, 0], weights / weights.sum()]))
    assert np.isfinite(move(probabilities, np.array([900.0, 0.0, 0.0]))).all()


def test_a_bundle_predicts_at_its_operating_point(tmp_path: Path) -> None:
    config = toy_config(epochs=1)
    training = Training(config, toy_folds(config, 2))
    training.run_epoch()
    clips = toy_side(config, 12, seed=3).clips
    predicted = []
    for name, details in {"plain": {}, "moved": {"operating_point": {"middle": 0.7}}}.items():
        save_networks(tmp_path / name, config, CLASSES, training.networks(), details)
        predicted.append(load_bundle(tmp_path / name).predict_clips(lambda _: clips))
    odds = [np.log(p[:, 1] / p[:, 0]) for p in predicted]
    assert odds[1] - odds[0] == pytest.approx(np.full(12, 0.7), abs=1e-4)


@pytest.mark.parametrize(
    "point", [{"nobody": 0.1}, {"low": float("nan")}, {"low": "x"}, {"low": 10**400}, [1]]
)
def test_a_wrong_operating_point_is_one_line(point: object, tmp_path: Path) -> None:
    config = toy_config(epochs=1)
    training = Training(config, toy_folds(config, 1))
    save_networks(tmp_path, config, CLASSES, training.networks(), {"operating_point": point})
    with pytest.raises(UserError, match="is not a valid bundle") as error:
        load_bundle(tmp_path)
    assert len(str(error.value).splitlines()) == 1


def test_offsets_follow_the_order_of_the_classes() -> None:
    assert log_offsets({"middle": 0.5}, CLASSES).tolist() == [0.0, 0.5, 0.0]


@pytest.fixture(scope="module", autouse=True)
def _few_trees() -> Iterator[None]:
    with few_trees():
        yield


CYCLES = ("--task", "cycles", "--trials", "1", "--replicates", "1")


def test_a_search_for_the_icbhi_score_moves_its_winner(tmp_path: Path) -> None:
    spec = small_spec(tmp_path, *CYCLES, "--metric", "icbhi_score")
    winner = json.loads(search_here(spec).read_bytes())["winner"]
    folder = spec.location.folder / "winner"
    assert (
        json.loads((folder / "config.json").read_bytes())["operating_point"]
        == (winner["operating_point"])
    )
    table = pd.read_csv(folder / "predictions.csv")
    classes = load_bundle(folder).classes
    for side in ("validation", "test"):
        rows = table[table["side"] == side]
        labels = rows["label"].map(classes.index).to_numpy()
        probabilities = rows[[f"p_{c}" for c in classes]].to_numpy()
        here = np.log(probabilities[:, 1]) - np.log(probabilities[:, 0])
        before = probabilities * np.exp([-winner["operating_point"]["normal"], 0])
        assert np.isfinite(here).all()
        scores = [icbhi(labels, p) for p in (before, probabilities)]
        if side == "validation":
            assert scores[1] == max(scores), "the point is chosen on the validation split"
        else:
            assert scores[1] == pytest.approx(winner["test"]["icbhi_score"])
            unmoved = winner["test"]["without_operating_point"]
            assert scores[0] == pytest.approx(unmoved["icbhi_score"])
            price = winner["price_of_searching"]
            assert price["test"] == pytest.approx(scores[0]), "as trials are scored"
    assert (
        "The operating point was chosen on the validation split"
        in (spec.location.folder / "report.html").read_text()
    )


def test_other_metrics_move_nothing(tmp_path: Path) -> None:
    spec = small_spec(tmp_path, *CYCLES)
    winner = json.loads(search_here(spec).read_bytes())["winner"]
    assert winner["operating_point"] is None
    assert "without_operating_point" not in winner["test"]
