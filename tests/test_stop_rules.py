"""Rules that end a search early: when they hold, and that a restart heeds them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.samplers import RandomSampler
from support.audits import few_trees
from support.instant import search_here, small_spec
from support.trial_queues import SPACE, next_of, row, study_at

from resp_tune.common.trial_key import TrialKey
from resp_tune.config import TrialConfig
from resp_tune.errors import UserError
from resp_tune.harness.options import SearchOptions
from resp_tune.search import read_options
from resp_tune.study.schedulers import Steps
from resp_tune.study.stop_rules import (
    Plateau,
    Progress,
    Regret,
    Target,
    parse_stop_rule,
    standard_error,
)
from resp_tune.study.study import TrialRecord
from resp_tune.study.trial_queue import Rules, SamplerSource, TrialQueue, TrialSettings


def progress(scores: list[float | None], metric: str = "macro_f1") -> Progress:
    """Trials with these scores; None: pruned, NaN: failed."""
    trials = []
    for number, score in enumerate(scores):
        state: Any = "pruned" if score is None else "failed" if np.isnan(score) else "finished"
        value = score if state == "finished" else None
        key, config = TrialKey(number), TrialConfig()
        trials.append(TrialRecord(key, state, value, config, {}, [], 1.0, None))
    return Progress(trials, optuna.create_study(), metric, Steps(3))


@pytest.mark.parametrize(
    ("scores", "count", "ends"),
    [
        ([], 1, False),
        ([None, None, None], 1, False),  # nothing is the best
        ([0.5], 1, False),
        ([0.5, 0.4], 1, True),
        ([0.5, 0.5], 1, True),  # no better
        ([0.5, None, 0.2], 2, True),
        ([0.5, None, 0.6], 1, False),
        ([0.5, float("nan"), float("nan"), 0.1], 2, False),  # failed trials say nothing
    ],
)
@pytest.mark.parametrize("metric", ["macro_f1", "log_loss"])
def test_plateau(scores: list[float | None], count: int, ends: bool, metric: str) -> None:
    if metric == "log_loss":
        scores = [s if s is None else 1 - s for s in scores]
    assert bool(Plateau(count).reason(progress(scores, metric))) == ends


def test_target_in_both_directions() -> None:
    assert Target(0.6).reason(progress([0.5, 0.59])) is None
    assert Target(0.6).reason(progress([0.5, 0.6])) == "trial 1 has reached 0.6"
    assert Target(0.6).reason(progress([0.7, 0.5], "log_loss")) == "trial 1 has reached 0.5"
    assert Target(0.6).reason(progress([0.7], "log_loss")) is None


def test_standard_error_of_folds_that_share_patients() -> None:
    scores = [0.3, 0.5, 0.4]
    expected = np.sqrt((1 / 3 + 1 / 3) * np.var(scores, ddof=1))
    assert standard_error(scores) == pytest.approx(expected)


def regret_after(noise: float, trials: int) -> str | None:
    """Judge a study of one parameter whose scores are all but flat; folds differ by `noise`."""
    study = optuna.create_study(direction="maximize", sampler=RandomSampler(seed=0))
    records = []
    for number in range(trials):
        trial = study.ask()
        x = trial.suggest_float("x", 0, 1)
        score = 0.5 + 0.001 * x
        study.tell(trial, score)
        folds = (score - noise, score)  # the mean after the first fold, and after both
        rows = [{"epoch": e, "val_macro_f1": v} for e, v in enumerate(folds, 1)]
        records.append(
            TrialRecord(TrialKey(number), "finished", score, TrialConfig(), {}, rows, 1.0, None)
        )
    return Regret().reason(Progress(records, study, "macro_f1", Steps(1, folds=2)))


def test_regret_compares_the_possible_gain_with_the_noise_of_the_folds() -> None:
    assert regret_after(noise=0.1, trials=19) is None, "too few to say"
    reason = regret_after(noise=0.1, trials=25)
    assert reason is not None
    assert "less than the noise of 0.129" in reason  # sqrt((1/2 + 1/3) · 2 · 0.1²)
    assert regret_after(noise=0.0, trials=25) is None


@pytest.mark.parametrize(
    "text",
    ["", "plateau", "plateau:", "plateau:0", "plateau:-1", "plateau:2.5", "target", "target:nan",
     "target:inf", "target:x", "regret:", "regret:3", "Regret", "never"],
)  # fmt: skip
def test_what_is_no_rule_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is not a rule: give plateau:N, target:X or regret"):
        read_options([f"--stop={text}"])


def test_rules_are_read() -> None:
    options = read_options(["--stop", "plateau:10", "--stop", "target:.6"])
    assert options.stop == ("plateau:10", "target:.6")
    assert [parse_stop_rule(t) for t in options.stop] == [Plateau(10), Target(0.6)]
    assert SearchOptions().stop == ()
    with pytest.raises(UserError, match="--stop regret compares with the noise between folds"):
        read_options(["--stop", "regret"])
    assert read_options(["--stop", "regret", "--folds", "2"]).stop == ("regret",)


def test_a_file_may_hold_several_and_the_command_line_replaces_them(tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text("stop: [plateau:3, target:0.5]\ntrials_per_gpu: auto\n")
    config = ["--config", str(file)]
    assert read_options(config).stop == ("plateau:3", "target:0.5")
    assert read_options(config).trials_per_gpu is None
    assert read_options([*config, "--stop", "plateau:9"]).stop == ("plateau:9",)
    file.write_text("stop: plateau:3\n")
    assert read_options(config).stop == ("plateau:3",)


def test_the_study_remembers_which_rule_ended_it(tmp_path: Path, said: list[str]) -> None:
    settings = TrialSettings("macro_f1", epochs=1, seed=5)

    def queue(*stop: str) -> TrialQueue:
        rules = Rules(stop=stop)
        return TrialQueue(SamplerSource(study_at(tmp_path), SPACE, settings, budget=9, rules=rules))

    def run(trials: TrialQueue, score: float) -> None:
        key = next_of(trials)["key"]
        trials.advance(key, [row(1, score)])
        trials.end(key, "finished")

    trials = queue("target:0.9", "plateau:2")
    for score in (0.5, 0.4, 0.3):
        run(trials, score)
    assert trials.next_trial() is None
    assert said == ["no more trials: plateau:2 (no trial of the last 2 is better than trial 0)"]
    assert queue("plateau:2").next_trial() is None, "the same command asks for no more"
    more = queue("plateau:3")  # another rule, another answer
    run(more, 0.95)
    assert queue("target:0.9").next_trial() is None
    run(queue(), 0.1)


def test_the_summary_names_what_ended_the_trials(tmp_path: Path) -> None:
    def finish(*flags: str) -> dict[str, Any]:
        with few_trees():
            return json.loads(search_here(small_spec(tmp_path, *flags)).read_bytes())  # type: ignore[no-any-return]

    first = finish("--trials", "4", "--stop", "target:0", "--concurrency", "1")
    assert (first["trials"]["finished"], first["stopped_by"]) == (1, "target:0")
    again = finish("--trials", "4", "--stop", "target:0")
    assert (again["trials"], again["stopped_by"]) == (first["trials"], "target:0")
    more = finish("--trials", "2")
    assert (more["trials"]["finished"], more["stopped_by"]) == (2, "trials")
