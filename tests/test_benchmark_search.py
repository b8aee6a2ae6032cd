"""The benchmark of the search: the table of trials, and searches replayed on it by hand."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from support.old_release import make_recordings

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import benchmark_search  # noqa: E402
from benchmarks.search_table import compare as comparison  # noqa: E402
from benchmarks.search_table import fold_costs, record, replay, settings, tools  # noqa: E402
from benchmarks.search_table.replay import Ended, Replay, replay_seeds  # noqa: E402
from benchmarks.search_table.sampling import Grid  # noqa: E402
from benchmarks.search_table.settings import OPTUNA, OTHERS, RAY, TODAY, Setting  # noqa: E402
from benchmarks.search_table.table import SearchTable, make_table, read_frame, write_frame  # noqa: E402

from resp_tune.common import choices  # noqa: E402
from resp_tune.errors import UserError  # noqa: E402
from resp_tune.harness.options import SearchOptions  # noqa: E402
from resp_tune.space.search_space import SearchSpace, load_space  # noqa: E402
from resp_tune.study.schedulers import Steps  # noqa: E402

SPACE = """
fixed: {n_mels: 16, clip_seconds: 1.0, sample_rate: 4000, f_max: 2000.0, width: 2, batch_size: 8}
parameters:
  lr: {type: float, low: 1.0e-4, high: 1.0e-2, log: true}
  balance: {type: categorical, values: [sampler, focal]}
  depth: {type: int, low: 2, high: 4, when: {balance: focal}}
"""


@pytest.fixture(autouse=True)
def _whole_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searches in silence that may try every point, unless a test says otherwise."""
    tools.quiet()
    monkeypatch.setattr(replay, "MAX_SHARE", 1.0)


@pytest.fixture(scope="module")
def space_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("space") / "space.yaml"
    path.write_text(SPACE)
    return path


@pytest.fixture(scope="module")
def space(space_file: Path) -> SearchSpace:
    return load_space(str(space_file))


def made_table(
    space: SearchSpace, trials: int = 40, folds: int = 4, epochs: int = 6
) -> SearchTable:
    """A table whose scores rise with `lr`, with noise; a trial's epochs take 1 or 2 seconds."""
    draw = np.random.default_rng(0)
    params = tuple(record.random_params(space, 0, n) for n in range(trials))
    quality = np.array([0.5 + 0.1 * math.log10(p["lr"] / 1e-3) for p in params])
    curve = 1 - 0.5 * np.exp(-np.arange(1, epochs + 1) / 2)
    values = quality[:, None, None] * curve + draw.normal(0, 0.03, (trials, folds, epochs))
    seconds = np.repeat(1.0 + np.arange(trials) % 2, folds * epochs).reshape(values.shape)
    unseen = quality[:, None] + draw.normal(0, 0.01, (trials, folds))
    return SearchTable("macro_f1", params, values, seconds, unseen)


def frame_of(table: SearchTable) -> pd.DataFrame:
    rows = [
        {
            "trial": trial,
            "fold": fold,
            "epoch": epoch + 1,
            "seconds": table.seconds[trial, fold, epoch],
            "val_macro_f1": value,
            "unseen_macro_f1": table.unseen[trial, fold] if epoch + 1 == table.epochs else np.nan,
            "params": json.dumps(table.params[trial]),
        }
        for (trial, fold, epoch), value in np.ndenumerate(table.values)
    ]
    return pd.DataFrame(rows)


def replayed(table: SearchTable, space: SearchSpace, setting: Setting, seed: int = 0) -> Replay:
    search = Replay(table, (space, Grid(space, table.params)), setting, seed)
    search.run(10_000.0)
    return search


# The table


def test_a_table_comes_back(space: SearchSpace, tmp_path: Path) -> None:
    table, path = made_table(space), tmp_path / "search_table.csv.gz"
    write_frame(path, frame_of(table).sample(frac=1, random_state=0))
    first = path.read_bytes()
    write_frame(path, read_frame(path))
    assert path.read_bytes() == first
    again = make_table(read_frame(path), "macro_f1")
    assert again.params == table.params
    np.testing.assert_allclose(again.values, table.values, rtol=1e-5)
    np.testing.assert_allclose(again.unseen, table.unseen, rtol=1e-5)
    with pytest.raises(UserError, match="metric 'mcc' was not recorded: known: macro_f1"):
        make_table(read_frame(path), "mcc")
    with pytest.raises(UserError, match="record a table first"):
        read_frame(tmp_path / "absent.csv.gz")
    path.write_bytes(first[:100])
    with pytest.raises(UserError, match="is not a table of trials"):
        read_frame(path)


def test_the_nearest_point(space: SearchSpace) -> None:
    """By hand: lr by its logarithm, categories and absent parameters count 1."""
    points: list[dict[str, Any]] = [
        {"lr": 1e-4, "balance": "sampler"},
        {"lr": 1e-2, "balance": "sampler"},
        {"lr": 1e-2, "balance": "focal", "depth": 2},
        {"lr": 1e-2, "balance": "focal", "depth": 4},
    ]
    grid, every = Grid(space, points), np.ones(4, dtype=bool)

    def nearest(params: dict[str, Any], untried: Any = every) -> int:
        return grid.nearest(params, untried)

    assert nearest({"lr": 9e-4, "balance": "sampler"}) == 0
    assert nearest({"lr": 1.1e-3, "balance": "sampler"}) == 1
    assert nearest({"lr": 1e-4, "balance": "focal", "depth": 4}) == 3
    assert nearest({"lr": 1e-4, "balance": "focal", "depth": 3}) == 2, "the first of equals"
    assert nearest({"lr": 1e-4, "balance": "sampler"}, np.array([False, True, True, True])) == 1


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_two_trials_are_recorded(space_file: Path, tmp_path: Path) -> None:
    make_recordings(tmp_path / "data")
    out = tmp_path / "out"
    given = ["record", "--data", str(tmp_path / "data"), "--space", str(space_file), "--epochs",
             "2", "--folds", "2", "--workers", "1", "--out", str(out), "--trials"]  # fmt: skip
    benchmark_search.main([*given, "1"])
    first = read_frame(out / "search_table.csv.gz")
    benchmark_search.main([*given, "2"])
    frame = read_frame(out / "search_table.csv.gz")
    pd.testing.assert_frame_equal(frame[frame["trial"] == 0], first, check_dtype=False)
    assert frame[["trial", "fold", "epoch"]].to_numpy().tolist() == [
        [t, f, e] for t in (0, 1) for f in (0, 1) for e in (1, 2)
    ]
    assert frame["unseen_macro_f1"].notna().tolist() == [False, True] * 4
    assert (
        frame[["val_macro_f1", "val_patient_macro_f1", "val_log_loss", "seconds"]].notna().all(None)
    )
    facts = json.loads((out / "search_table.json").read_text())
    shown = [entry["command"] for entry in facts["commands"]]
    assert [line.split()[-1] for line in shown] == ["1", "2"]
    assert str(tmp_path) not in json.dumps(facts)
    before = (out / "search_table.json").read_bytes()
    benchmark_search.main([*given, "2"])  # nothing is missing
    assert (out / "search_table.json").read_bytes() == before
    with pytest.raises(UserError, match="is of another seed: give the options it was recorded"):
        benchmark_search.main([*given, "3", "--seed", "1"])
    table = make_table(frame, "macro_f1")
    assert (table.folds, table.epochs, len(table.params)) == (2, 2, 2)


def test_a_point_does_not_depend_on_those_before(space: SearchSpace) -> None:
    alone = record.random_params(space, 0, 7)
    assert [record.random_params(space, 0, n) for n in range(8)][7] == alone
    assert record.random_params(space, 0, 0) == space.baseline_params()
    assert record.random_params(space, 1, 7) != alone


# A search on it


def test_time_is_that_of_the_epochs(space: SearchSpace) -> None:
    """Two workers, trials of 1 and 2 s an epoch, 6 epochs: by hand."""
    table = made_table(space, trials=5)
    table = replace(table, params=tuple(dict(p) for p in table.params))
    ended = replayed(table, space, Setting("random", "none")).ended
    assert len(ended) == 5
    assert {e.point for e in ended} == set(range(5))
    free = [0.0, 0.0]
    order = [e.point for e in ended]
    for point in sorted(range(5), key=lambda p: [e.time for e in ended][order.index(p)]):
        end = ended[order.index(point)].time
        worker = free.index(end - (1 + point % 2) * 6.0)  # started when a worker was free
        free[worker] = end
    assert ended[0].score in table.values[:, 0, -1]


@pytest.mark.parametrize("rule", ["none", "forgiving", "wilcoxon", "together"])
def test_several_folds_take_their_time(rule: str, space: SearchSpace) -> None:
    table = made_table(space, trials=12)
    search = replayed(table, space, Setting("random", "none", 3, rule), seed=2)
    assert search.common == [2, 3, 0]
    for end in search.ended:
        if end.finished:
            expected = table.values[end.point, search.common, -1].mean()
            assert end.score == pytest.approx(expected)
    finished = sum(e.finished for e in search.ended)
    assert finished == 12 if rule in ("none", "together") else 0 < finished < 12


def test_asha_stops_as_in_the_product(space: SearchSpace) -> None:
    table = made_table(space)
    search = replayed(table, space, Setting("random", "asha"))
    stopped = [e for e in search.ended if not e.finished]
    assert len(search.ended) == 40
    assert 10 < len(stopped) < 35
    rung = 3  # the grace period of six epochs
    assert all(e.score == table.values[e.point, 0, rung - 1] for e in stopped)
    seen: list[float] = []
    for end in sorted(search.ended, key=lambda e: _reached(e, table, rung)):
        best = table.values[end.point, 0, :rung].max()
        expected = bool(seen) and best < np.percentile(seen, 200 / 3)
        assert expected != end.finished
        seen.append(best)


def _reached(end: Ended, table: SearchTable, step: int) -> float:
    """When a trial came to a step."""
    whole = table.epochs if end.finished else step
    return end.time - float(table.seconds[end.point, 0, step:whole].sum())


@pytest.mark.parametrize("sampler", choices.SAMPLERS)
def test_every_sampler_tries_each_point_once(sampler: str, space: SearchSpace) -> None:
    table = made_table(space, trials=11)
    setting = Setting(sampler, "asha", 2, "forgiving")
    points = [e.point for e in replayed(table, space, setting).ended]
    assert sorted(points) == list(range(11))
    again = [e.point for e in replayed(table, space, setting).ended]
    assert points == again
    other = [e.point for e in replayed(table, space, setting, seed=1).ended]
    assert points != other


@pytest.mark.parametrize("setting", [*OTHERS, Setting(scheduler="hyperband", folds=2),
                                     Setting(scheduler="median", folds=2)])  # fmt: skip
def test_other_tools_and_pruners(setting: Setting, space: SearchSpace) -> None:
    table = made_table(space)
    ended = replayed(table, space, setting).ended
    assert sorted(e.point for e in ended) == list(range(40))
    stopped = sum(not e.finished for e in ended)
    assert stopped == 0 if setting.scheduler == "none" else 0 < stopped < 40
    assert replayed(table, space, setting).ended == ended


def test_a_model_finds_what_is_good(space: SearchSpace) -> None:
    """TPE is asked for 60 of 200 points: it tries better ones than random search."""
    table = made_table(space, trials=200)
    mean = {}
    for sampler in ("tpe", "random"):
        tried = []
        for seed in range(3):
            search = Replay(
                table, (space, Grid(space, table.params)), Setting(sampler, "none"), seed
            )
            search.run(270.0)
            tried += [e.point for e in search.ended]
        assert 150 < len(tried) < 210
        mean[sampler] = table.unseen[tried].mean()
    assert mean["tpe"] > mean["random"] + 0.01


def test_a_diverged_trial_is_never_chosen(space: SearchSpace) -> None:
    table = made_table(space)
    values, unseen = table.values.copy(), table.unseen.copy()
    best = int(values[:, 0, -1].argmax())
    values[best, :, 2:], unseen[best] = np.nan, np.nan
    table = replace(table, values=values, unseen=unseen)
    for setting in (TODAY, Setting("tpe", "none", 2, "forgiving", reshuffle=True), *OTHERS):
        search = replayed(table, space, setting)
        choice = search.choose(10_000.0)
        assert choice is not None
        assert choice.point != best
        assert math.isfinite(choice.price)


def test_reshuffled_folds_are_each_trials_own(space: SearchSpace) -> None:
    search = Replay(
        made_table(space), (space, Grid(space, ())), Setting(folds=2, reshuffle=True), 3
    )
    drawn = [search.folds_of(trial) for trial in range(20)]
    assert drawn == [search.folds_of(trial) for trial in range(20)]
    assert all(len(set(folds)) == 2 for folds in drawn)
    assert len({tuple(sorted(folds)) for folds in drawn}) > 3
    assert search.common == [3, 0]


# What it chose


def two_points(space: SearchSpace) -> SearchTable:
    """Point 1 looks better on fold 0 by .2, and is worse on unseen patients by .1."""
    values = np.array([[[0.4], [0.6]], [[0.6], [0.5]]])
    unseen = np.array([[0.5, 0.5], [0.4, 0.4]])
    params = tuple(record.random_params(space, 0, n) for n in range(2))
    return SearchTable("macro_f1", params, values, np.ones_like(values), unseen)


def test_the_price_of_a_choice(space: SearchSpace) -> None:
    """By hand: it leads the mean of the table by .1, and is .05 behind on unseen patients."""
    choice = replayed(two_points(space), space, Setting("random", "none")).choose(1.0)
    assert choice is not None
    assert (choice.point, choice.trials) == (1, 2)
    assert choice.unseen == pytest.approx(0.4)
    assert choice.others == pytest.approx(0.5)
    assert choice.price == pytest.approx(0.1 - -0.05)


def test_a_budget_ends_the_search(space: SearchSpace) -> None:
    table = made_table(space, trials=10)
    parts = (space, Grid(space, table.params))
    early, late = replay_seeds(table, parts, Setting("random", "none"), range(3), (13.0, 40.0))
    for one, other in zip(early, late, strict=True):
        assert one is not None
        assert other is not None
        assert 0 < one.trials <= 4 < other.trials < 10
    (none,) = replay_seeds(table, parts, Setting("random", "none"), range(2), (5.0,))
    assert none == [None, None]


def test_a_search_leaves_half_of_the_table(
    space: SearchSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "MAX_SHARE", 0.5)
    for sampler in ("random", "tpe"):
        assert len(replayed(made_table(space, 15), space, Setting(sampler, "none")).ended) == 8
    slow = Setting("gp", "none")
    assert slow.max_trials == 60
    assert (slow.seeds(30), slow.seeds(3), TODAY.seeds(30)) == (10, 3, 30)


def test_reshuffling_pays_for_its_selection(space: SearchSpace) -> None:
    """Four candidates of six epochs of 1.5 s on average, two at a time: 18 s."""
    table = made_table(space)
    search = replayed(table, space, Setting("random", "none", 1, reshuffle=True))
    assert search._selection_seconds() == pytest.approx(18.0)
    chosen = search.choose(60.0)
    assert chosen is not None
    assert chosen.trials == sum(e.time <= 42.0 for e in search.ended)
    ended = [e for e in search.ended if e.time <= 42.0]
    best = sorted(ended, key=lambda e: -e.score)[:4]
    assert chosen.point == max(best, key=lambda e: table.values[e.point, 0, -1]).point


# The settings, and what is written


def test_the_settings_are_those_that_a_search_accepts() -> None:
    grid = settings.grid(4)
    assert len(grid) == len(set(grid))
    assert TODAY in grid
    assert grid[:3] == list(OTHERS)
    own = [s for s in grid if s.tool == "resp_tune"]
    assert {s.sampler for s in own} == set(choices.SAMPLERS)
    assert set(choices.SCHEDULERS) <= {s.scheduler for s in own}
    assert {s.fold_rule for s in own} == {*choices.FOLD_RULES, "together"}
    assert {(s.folds, s.reshuffle) for s in own} == {
        (1, False), (1, True), (3, False), (3, True), (4, False),
    }  # fmt: skip
    for setting in own:
        if setting.scheduler in choices.SCHEDULERS:
            together = setting.fold_rule == "together"
            SearchOptions(
                sampler=setting.sampler,
                scheduler=setting.scheduler,
                folds=setting.folds,
                fold_order="together" if together else None,
                fold_rule=None if together else setting.fold_rule,
                reshuffle=setting.reshuffle,
                replicates=2 if setting.reshuffle else 1,
            )


def test_a_comparison_is_written(
    space: SearchSpace, space_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = [*OTHERS, TODAY, Setting("random", "none", 4, "forgiving")]
    monkeypatch.setattr(comparison, "grid", lambda folds: few)
    table = made_table(space)
    write_frame(tmp_path / "search_table.csv.gz", frame_of(table))
    benchmark_search.main(
        ["compare", "--seeds", "3", "--budgets", "2,60s,5m", "--jobs", "1", "--space",
         str(space_file), "--out", str(tmp_path)]
    )  # fmt: skip
    rows = pd.DataFrame(json.loads((tmp_path / "search_compare.json").read_text()))
    assert len(rows) == 3 * len(few)
    soon = rows[rows["budget_seconds"] == 2]
    soon = soon[soon["tool"] != RAY]  # whose choice may be a trial that was stopped
    assert (soon["seeds_without_choice"] == 3).all()
    assert soon["unseen"].isna().all()
    late = rows[rows["budget_seconds"] == 300]
    assert (late["seeds_without_choice"] == 0).all()
    parts = (space, Grid(space, make_table(read_frame(tmp_path / "search_table.csv.gz"),
                                           "macro_f1").params))  # fmt: skip
    (found,) = replay_seeds(
        make_table(read_frame(tmp_path / "search_table.csv.gz"), "macro_f1"),
        parts, TODAY, range(3), (300.0,),
    )  # fmt: skip
    expected = [choice.unseen for choice in found if choice is not None]
    row = late[(late["tool"] == "resp_tune") & (late["folds"] == 1)].iloc[0]
    assert row["unseen"] == pytest.approx(np.mean(expected))
    assert row["unseen_se"] == pytest.approx(np.std(expected, ddof=1) / 3**0.5)
    page = (tmp_path / "SEARCH.md").read_text()
    assert "**Best after 5 min:**" in page
    assert f"| **{OPTUNA}** |" in page
    assert f"| **{RAY}** |" in page
    assert str(tmp_path) not in page


def test_the_cost_of_folds(tmp_path: Path) -> None:
    summary = {
        "metric": "macro_f1",
        "trials": {"finished": 2, "pruned": 1, "diverged": 0},
        "winner": {
            "price_of_searching": {"best_validation": 0.5, "test": 0.4, "difference": 0.1},
            "test": {"macro_f1": 0.4},
        },
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    pd.DataFrame({"seconds": [10.0, 20.0, 5.0]}).to_csv(tmp_path / "epochs.csv", index=False)
    together = fold_costs.read_cost(tmp_path, 4, 30.0)
    assert together.epochs == 12
    pd.DataFrame({"seconds": [10.0, 20.0, 5.0], "fold": 0}).to_csv(
        tmp_path / "epochs.csv", index=False
    )
    one = fold_costs.read_cost(tmp_path, 4, 30.0)
    assert (one.training_seconds, one.epochs, one.price) == (35.0, 3, 0.1)
    assert one.states == {"finished": 2, "pruned": 1}
    costs = {"--folds 1": one, "--folds 4": replace(one, training_seconds=49.0)}
    page = fold_costs.page(costs, {"command": "c"})
    assert (
        "| --folds 4 | 30 | 49 | 1.40 | 3 | 2 finished, 1 pruned | 0.500 | 0.400 | 0.100 |" in page
    )


def test_steps_of_a_fold(space: SearchSpace) -> None:
    """The rows of a replay are those of a trial: means over the folds until then."""
    table = made_table(space, trials=3, folds=3)
    search = Replay(table, (space, Grid(space, table.params)), Setting("random", "none", 3), 0)
    tool = tools.make_tool(search.setting, "macro_f1", Steps(6, 3), 0, search.parts)
    trial = search._trial(tool, tool.ask(), [0, 1, 2], 0.0)
    own = Steps(6, 3).own_scores(trial.rows, "macro_f1")
    np.testing.assert_allclose(own, table.values[trial.point].ravel())
    np.testing.assert_allclose(trial.ends, np.arange(1, 19) * (1 + trial.point % 2))
