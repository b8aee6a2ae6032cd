"""The study in memory beside the same study as its file has it."""

from __future__ import annotations

import math
import random
import sqlite3
from contextlib import closing
from pathlib import Path

import optuna
import pytest
from optuna.exceptions import UpdateFinishedTrialError
from optuna.trial import FrozenTrial
from sqlalchemy.exc import SQLAlchemyError
from support.trial_queues import epochs_of

from resp_tune.common.choices import State
from resp_tune.common.trial_key import TrialKey
from resp_tune.space.search_space import load_space
from resp_tune.study.optuna_internals import one_commit
from resp_tune.study.samplers import SAMPLERS, make_sampler
from resp_tune.study.study import open_study, read_study, state_of
from resp_tune.study.trial_queue import SamplerSource, TrialQueue, TrialSettings

WIDE = load_space("wide.yaml")


def opened(folder: Path, sampler: str = "random") -> optuna.Study:
    return open_study(folder / "study.db", "first", "macro_f1", make_sampler(sampler, 0))


def in_file(folder: Path) -> list[FrozenTrial]:
    """What a reader that knows nothing of the writer's memory sees."""
    return read_study(folder / "study.db", "first").get_trials()


def queue_of(study: optuna.Study, budget: int) -> TrialQueue:
    settings = TrialSettings("macro_f1", epochs=4, seed=1)
    return TrialQueue(SamplerSource(study, WIDE, settings, budget=budget))


def row_of(epoch: int, score: float) -> dict[str, float]:
    return {"epoch": epoch, "train_loss": math.nan, "val_macro_f1": score, "lr": 1e-3}


def act(queue: TrialQueue, running: dict[int, int], chance: random.Random) -> bool:
    """One thing that a driver does to a study; False when there is nothing left."""
    if len(running) < 3 and (handed := queue.next_trial()) is not None:
        running[handed["key"].number] = epochs_of(queue, handed["key"])
        return True
    if not running:
        return False
    number = chance.choice(list(running))
    epoch = running[number] = running[number] + 1
    queue.advance(TrialKey(number), [row_of(epoch, chance.random())], chance.choice([None, 8]))
    early: list[State | None] = [*[None] * 12, "pruned", "failed", "diverged"]
    state = chance.choice(early)
    if epoch == 4 or state is not None:
        del running[number]
        queue.end(TrialKey(number), state or "finished", None if state is None else "why")
    return True


def text_of(trials: list[FrozenTrial]) -> list[str]:
    """All of the trials, as text, where NaN equals NaN. The order of attributes is free."""
    return [
        str({k: dict(sorted(v.items())) if k in UNORDERED else v for k, v in vars(trial).items()})
        for trial in trials
    ]


UNORDERED = ("_user_attrs", "_system_attrs", "user_attrs", "system_attrs")


@pytest.mark.parametrize(
    "sampler", [pytest.param(s, marks=[pytest.mark.thorough] * (s != "tpe")) for s in SAMPLERS]
)
def test_memory_is_what_the_file_holds(sampler: str, tmp_path: Path) -> None:
    chance = random.Random(sampler)  # noqa: S311  # no secret
    study = opened(tmp_path, sampler)
    queue = queue_of(study, 14)
    running: dict[int, int] = {}
    while act(queue, running, chance):
        if chance.random() < 0.2:
            assert text_of(study.get_trials()) == text_of(in_file(tmp_path))
    assert text_of(study.get_trials()) == text_of(in_file(tmp_path))
    states = {state_of(trial) for trial in study.get_trials()}
    assert "finished" in states
    assert len(states) > 1


def test_a_driver_that_takes_over_goes_on_with_what_runs(tmp_path: Path) -> None:
    queue = queue_of(opened(tmp_path, "tpe"), 6)
    for number, epochs in enumerate((1, 0, 2)):
        queue.next_trial()
        queue.advance(TrialKey(number), [row_of(epoch, 0.5) for epoch in range(1, 1 + epochs)])
    study = opened(tmp_path, "tpe")
    queue = queue_of(study, 6)
    left = [handed for _ in range(3) if (handed := queue.next_trial()) is not None]
    running = {handed["key"].number: epochs_of(queue, handed["key"]) for handed in left}
    assert running == {0: 1, 1: 0, 2: 2}
    chance = random.Random(7)  # noqa: S311  # no secret
    while act(queue, running, chance):
        pass
    assert text_of(study.get_trials()) == text_of(in_file(tmp_path))


def test_a_trial_that_has_ended_stays_as_it_is(tmp_path: Path) -> None:
    study = opened(tmp_path)
    trial = study.ask()
    trial.set_user_attr("seed", 3)
    study.tell(trial, 0.5)
    with pytest.raises(UpdateFinishedTrialError):
        study._storage.set_trial_user_attr(trial._trial_id, "seed", 4)
    assert study.trials[0].user_attrs == {"seed": 3}


def test_an_act_that_fails_is_forgotten_here_too(tmp_path: Path) -> None:
    study = opened(tmp_path)
    trial = study.ask()

    def half() -> None:
        with one_commit(study):
            trial.report(0.5, 1)
            study.ask()
            raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        half()
    assert text_of(study.get_trials()) == text_of(in_file(tmp_path))
    assert [t.intermediate_values for t in study.trials] == [{}]


def test_a_file_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    study = opened(tmp_path)
    trial = study.ask()
    with closing(sqlite3.connect(tmp_path / "study.db")) as database:
        database.execute("DROP TABLE trial_user_attributes")
    with pytest.raises(SQLAlchemyError, match="trial_user_attributes"):
        trial.set_user_attr("seed", 3)
    assert study._storage.get_trial(trial._trial_id).user_attrs == {}


@pytest.mark.parametrize("score", [0.5, 1e-300, math.inf, -math.inf, math.nan])
def test_scores_of_every_kind(score: float, tmp_path: Path) -> None:
    study = opened(tmp_path)
    trial = study.ask()
    trial.report(score, 1)
    study._storage.set_trial_intermediate_value(trial._trial_id, 2, 0.25)
    study._storage.set_trial_intermediate_value(trial._trial_id, 2, score)
    assert text_of(study.get_trials()) == text_of(in_file(tmp_path))
    assert [str(float(v)) for v in study.trials[0].intermediate_values.values()] == [
        str(float(score))
    ] * 2


def test_running_trials_are_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To hand out a trial must not cost more the more of them run."""
    queue = queue_of(opened(tmp_path, "tpe"), 20)
    queue.next_trial()
    for name in ("get_all_trials", "_get_trials"):
        monkeypatch.setattr(optuna.storages.RDBStorage, name, None)
    handed = [queue.next_trial() for _ in range(12)]
    assert None not in handed
