"""Trainings that blow up end at once, and say so."""

from __future__ import annotations

import math

import pytest
from support.toy import toy_config, toy_data, toy_folds, trained

from resp_tune.features.batches import ClipIndex
from resp_tune.features.logmel import Frames
from resp_tune.training.fold_training import SplitTensors, TrainingData
from resp_tune.training.loop import Training, fit


def overwritten(side: SplitTensors, value: float, folds: list[TrainingData]) -> list[TrainingData]:
    """The same folds, with the first frame of every clip of `side` replaced."""
    frames = side.clips.frames
    values = frames.values.clone()
    values[side.clips.first] = value
    changed = Frames(values, frames.first, frames.count)

    def over(old: SplitTensors) -> SplitTensors:
        return SplitTensors(ClipIndex(changed, old.clips.first, old.clips.count), old.labels)

    return [TrainingData(over(f.train), over(f.validation), f.classes) for f in folds]


def test_a_training_that_blows_up_ends() -> None:
    """Weight decay of 10 at lr 10 multiplies the weights by −99 a step."""
    config = toy_config(lr=10.0, weight_decay=10.0, epochs=40)
    results = list(fit(config, [toy_data(config)]))
    assert len(results) < 40
    assert [r.finite for r in results] == [True] * (len(results) - 1) + [False]


def test_infinite_inputs_end_the_training_after_one_epoch() -> None:
    config = toy_config()
    whole = toy_data(config)
    (broken,) = overwritten(whole.train, math.inf, [whole])
    training = trained(config, [broken])
    (result,) = training.history
    assert not result.finite
    assert math.isnan(result.train_loss)
    assert math.isnan(result.val_loss)
    assert result.metrics == {}
    assert training.done
    again = Training(config, [broken])
    again.load_state(training.state())
    assert again.done
    assert again.history[0].epoch == 1


@pytest.mark.parametrize("broken_fold", [0, 1])
def test_one_fold_that_diverges_ends_all(broken_fold: int) -> None:
    """Also when only its validation shows it, and whichever fold it is."""
    config = toy_config()
    folds = toy_folds(config, 2)
    folds = overwritten(folds[broken_fold].validation, math.nan, folds)
    (result,) = trained(config, folds).history
    assert math.isfinite(result.train_loss)
    assert math.isnan(result.val_loss)
    assert result.metrics == {}
    assert not result.finite


def test_sides_over_different_frames_are_refused() -> None:
    """Their rows would be looked up in the wrong recordings without anyone noticing."""
    config = toy_config()
    one, other = toy_data(config), toy_data(config)
    for folds in ([TrainingData(one.train, other.validation, one.classes)], [one, other]):
        with pytest.raises(ValueError, match="clips of the same frames"):
            Training(config, folds)
