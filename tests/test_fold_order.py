"""Folds one after the other: scores, epochs and files know of them, and a restart as well."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mlflow import MlflowClient
from optuna.trial import TrialState
from support.audits import few_trees
from support.instant import search_here, small_spec, small_study
from support.searches import command
from support.trial_queues import SPACE, next_of, row, study_at

from resp_tune.errors import UserError
from resp_tune.harness.spec import SearchSpec, trial_identity
from resp_tune.search import read_options
from resp_tune.study.study import FOLD_ORDER, SETTINGS, bind_settings, records
from resp_tune.study.trial_queue import Rules, SamplerSource, TrialQueue, TrialSettings
from resp_tune.training.datamodule import FoldTables
from resp_tune.training.model_bundle import load_bundle


def finish(spec: SearchSpec) -> dict[str, Any]:
    with few_trees():
        return json.loads(search_here(spec).read_bytes())  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "order", ["sequence", pytest.param("together", marks=pytest.mark.thorough)]
)
def test_a_search_on_three_folds(order: str, tmp_path: Path) -> None:
    flags = ("--folds", "3", "--fold-order", order, "--trials", "2", "--replicates", "2")
    spec = small_spec(tmp_path, *flags)
    summary = finish(spec)
    steps = 9 if order == "sequence" else 3
    assert summary["trials"]["finished"] == 2
    trials = small_study(spec).get_trials()
    for trial in trials:
        assert sorted(trial.intermediate_values) == list(range(1, steps + 1))
        assert trial.user_attrs["config"]["folds_run"] == 3
        assert trial.value == pytest.approx(trial.intermediate_values[steps])
    table = pd.read_csv(spec.location.folder / "trials.csv")
    assert list(table["epochs"]) == [steps] * 2
    epochs = pd.read_csv(spec.location.folder / "epochs.csv")
    if order == "sequence":
        assert list(epochs[epochs["number"] == 0]["fold"]) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    else:
        assert "fold" not in epochs
    replicates = pd.read_csv(spec.location.folder / "replicates.csv")
    assert list(replicates["epochs"]) == [steps] * len(replicates)
    bundle = load_bundle(spec.location.folder / "winner")
    assert len(bundle.networks) == 2 * 3, "two seeds on each fold"
    client = MlflowClient(spec.location.tracking_uri)
    history = client.get_metric_history(table["mlflow_run_id"][0], "val_macro_f1")
    assert sorted(m.step for m in history) == list(range(1, steps + 1))
    rerun = finish(small_spec(tmp_path, *flags[:2], *flags[4:]))  # the order is the study's
    assert rerun["winner"] == summary["winner"]


@pytest.mark.thorough
def test_both_orders_score_a_trial_alike(tmp_path: Path) -> None:
    scores = []
    for order in ("sequence", "together"):
        flags = ("--folds", "2", "--fold-order", order, "--trials", "1", "--name", order)
        spec = small_spec(tmp_path, *flags)
        finish(spec)
        (trial,) = records(small_study(spec), spec.space)
        scores.append(trial.validation)
    assert scores[0] == pytest.approx(scores[1])


def test_a_study_of_an_earlier_release_keeps_its_order(tmp_path: Path) -> None:
    spec = small_spec(tmp_path, "--folds", "2")
    assert spec.options.order == "sequence"
    identity = trial_identity(spec.options, spec.space, spec.data)
    assert identity.pop(FOLD_ORDER) == "sequence"
    bind_settings(small_study(spec), identity | {})
    study = small_study(spec)
    study.set_user_attr(SETTINGS, identity)  # as release 0.1 wrote it
    assert small_spec(tmp_path, "--folds", "2").options.order == "together"
    with pytest.raises(UserError, match="fold order was 'together', now 'sequence'"):
        small_spec(tmp_path, "--folds", "2", "--fold-order", "sequence")


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UserError, match="unknown --fold-order 'serial': "):
        read_options(["--fold-order", "serial"])
    with pytest.raises(UserError, match="unknown --fold-rule 'strict': "):
        read_options(["--fold-rule", "strict"])


# Folds of a trial's own


def test_each_trial_has_folds_of_its_own_and_replicates_common_ones(tmp_path: Path) -> None:
    flags = ("--folds", "2", "--reshuffle", "--replicates", "2", "--trials", "3")
    spec = small_spec(tmp_path, *flags)
    summary = finish(spec)
    folder, datamodule = spec.location.folder, spec.data.datamodule
    own = [datamodule.reshuffle().folds_of(number) for number in range(3)]
    for number, folds in enumerate(own):
        runs = folder / "trials" / str(number)
        assert validated(runs) == stems(folds)
        for index in (1, 2):
            assert validated(runs / f"replicates/{index}") == stems(datamodule.folds())
        for fold in folds:
            train, validation = set(fold.train.patient), set(fold.validation.patient)
            assert not train & validation
            assert {*fold.train.stem, *fold.validation.stem} == set(datamodule.search_stems)
    assert stems(own[0]) != stems(own[1]) != stems(own[2])
    other = small_spec(tmp_path, *flags[:2], "--name", "other").data.datamodule
    assert datamodule.split == other.split
    assert summary["winner"]["test"] is not None
    run_id = pd.read_csv(folder / "trials.csv")["mlflow_run_id"][1]
    with pytest.raises(UserError, match="reshuffle was True, now False"):
        small_spec(tmp_path, "--folds", "2", "--replicates", "2")
    arguments = ("--run", run_id, "--data", str(tmp_path / "data"))
    repeated = command("train", *arguments, "--tracking-uri", spec.location.tracking_uri)
    assert repeated.code == 0, repeated.err
    score = small_study(spec).get_trials()[1].value
    assert f"macro_f1 {score:.4f}" in repeated.out


def validated(folder: Path) -> list[str]:
    """Return the recordings that a run was validated on, in the order of its folds."""
    return list(pd.read_csv(folder / "predictions.csv", dtype=str)["recording"])


def stems(folds: Sequence[FoldTables]) -> list[str]:
    return [stem for fold in folds for stem in fold.validation.stem.tolist()]


def test_own_folds_differ_by_trial_and_by_split_seed(tmp_path: Path) -> None:
    datamodule = small_spec(tmp_path).data.datamodule
    draw = datamodule.reshuffle()
    drawn = [stems(draw.folds_of(n)) for n in range(20)]
    assert drawn == [stems(draw.folds_of(n)) for n in range(20)]
    assert len(set(map(tuple, drawn))) > 10
    other = replace(draw, split_seed=1)
    assert [stems(other.folds_of(n)) for n in range(20)] != drawn
    for n in range(20):
        (fold,) = draw.folds_of(n)
        for split in (fold.train, fold.validation):
            assert set(split.label) == set(range(len(draw.classes)))


def test_reshuffling_needs_a_fair_comparison() -> None:
    with pytest.raises(UserError, match="give --replicates 2 or more with it"):
        read_options(["--reshuffle"])
    with pytest.raises(UserError, match="--protocol recording does not"):
        read_options(["--reshuffle", "--replicates", "2", "--protocol", "recording"])
    with pytest.raises(UserError, match="--fold-rule wilcoxon pairs epochs of the same folds"):
        read_options(["--reshuffle", "--replicates", "2", "--fold-rule", "wilcoxon"])


# Between folds


SETTINGS_OF_TWO = TrialSettings("macro_f1", epochs=2, seed=5, folds=2)


def queue(folder: Path) -> TrialQueue:
    rules = Rules(fold_rule="forgiving")
    source = SamplerSource(study_at(folder), SPACE, SETTINGS_OF_TWO, budget=9, rules=rules)
    return TrialQueue(source)


def train(trials: TrialQueue, *means: float) -> str | None:
    """Report the means of a trial's steps until a rule stops it; return the reason."""
    key, reason = next_of(trials)["key"], None
    for step, mean in enumerate(means, 1):
        if reason := trials.stop_reason(key, [row(step, mean)]):
            trials.advance(key, [row(step, mean)])
            trials.end(key, "pruned", reason)
            return reason
        trials.advance(key, [row(step, mean)])
    trials.end(key, "finished")
    return None


def test_a_fold_is_started_only_if_the_trial_may_still_win(tmp_path: Path) -> None:
    trials = queue(tmp_path)
    assert train(trials, 0.1, 0.6, 0.6, 0.5) is None  # folds: .6 and .4
    assert train(trials, 0.9, 0.3) == "fold 1"
    trials = queue(tmp_path)  # after a restart
    assert train(trials, 0.1, 0.39) == "fold 1"
    assert train(trials, 0.1, 0.41, 0.4, 0.41) is None
    stored = study_at(tmp_path).get_trials()
    states = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.PRUNED, TrialState.COMPLETE]
    assert [t.state for t in stored] == states
    assert [t.user_attrs["config"]["folds_run"] for t in stored] == [2, 1, 1, 2]
    assert [t.user_attrs.get("stopped") for t in stored] == [None, "fold 1", "fold 1", None]
    assert len(records(study_at(tmp_path), SPACE)) == 4, "the configs can be read"
