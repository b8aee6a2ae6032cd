"""Replicates: what is handed out in which order, who is dropped, who wins, what a restart finds."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from test_recorder import Diary, next_of, recorder_of, row, study_at

from resp_tune.learning.metrics import METRICS
from resp_tune.tuning.replicate_recorder import ReplicateRecorder
from resp_tune.tuning.replicates import (
    CANDIDATES,
    Candidate,
    candidates,
    choose,
    dropped,
    replicate_seed,
    replicates,
)
from resp_tune.tuning.space import load_space
from resp_tune.tuning.study import TrialRecord, records, trial_seed

SPACE = load_space("default.yaml")


def searched(study: optuna.Study, scores: Sequence[float], metric: str = "macro_f1") -> None:
    """Add finished trials with these scores."""
    recorder = recorder_of(study, metric=metric, budget=len(study.trials) + len(scores))
    for score in scores:
        number = next_of(recorder)["number"]
        recorder.advance(number, [row(e, score, metric) for e in (1, 2, 3)])
        recorder.end(number, "finished")


def rerunner(study: optuna.Study, count: int, **more: Any) -> ReplicateRecorder:
    given: dict[str, Any] = {
        "metric": "macro_f1",
        "epochs": 3,
        "seed": 5,
        "deadline": None,
        "listeners": [],
        "say": lambda text: None,
    }
    return ReplicateRecorder(study, records(study, SPACE), count=count, **(given | more))


def finish(recorder: ReplicateRecorder, key: tuple[int, int], score: float) -> None:
    recorder.advance(key, [row(e, score, recorder.metric) for e in (1, 2, 3)])
    recorder.end(key, "finished")


def run_all(recorder: ReplicateRecorder, scores: Mapping[int, Sequence[float]]) -> list[Any]:
    """Run what is left one by one; replicate `index` of a trial has `scores[number][index − 1]`."""
    keys = []
    while (handed := recorder.next_trial()) is not None:
        number, index = handed["key"]
        keys.append(handed["key"])
        finish(recorder, handed["key"], scores[number][index - 1])
    return keys


def found(study: optuna.Study, count: int, metric: str = "macro_f1") -> list[Candidate]:
    trials = records(study, SPACE)
    runs = replicates(study, trials)
    return candidates(trials, runs, dropped(study), metric=metric, count=count)


def winner(study: optuna.Study, count: int, metric: str = "macro_f1") -> int | None:
    chosen = choose(found(study, count, metric))
    return None if chosen is None else chosen.trial.number


def test_all_first_seeds_come_before_second_ones(tmp_path: Path) -> None:
    study = study_at(tmp_path)
    searched(study, [0.1, 0.5, 0.2, 0.4, 0.5, 0.3])
    assert len(study.trials) == 6
    recorder = rerunner(study, 2)
    handed = [next_of(recorder) for _ in range(2 * CANDIDATES)]
    best = [1, 4, 3, 5]
    assert [h["key"] for h in handed] == [(n, 1) for n in best] + [(n, 2) for n in best]
    assert recorder.next_trial() is None
    seeds = {h["config"]["seed"] for h in handed}
    assert len(seeds) == 8
    assert seeds.isdisjoint({trial_seed(5, n) for n in range(6)})
    own = {t.number: t.config for t in records(study, SPACE)}
    for h in handed:
        number, index = h["key"]
        assert h["config"]["seed"] == replicate_seed(5, number, index)
        assert h["config"] | {"seed": own[number].seed} == own[number].as_dict()
        assert h["folder"] == f"{number}/replicates/{index}"
        assert h["epochs_reported"] == 0
    assert len(study.trials) == 6, "replicates are no trials of the study"


def test_the_best_bound_wins_and_not_the_luckiest(tmp_path: Path) -> None:
    study, diary = study_at(tmp_path), Diary()
    searched(study, [0.9, 0.5, 0.6])
    run_all(
        rerunner(study, 3, listeners=[diary]),
        {0: [0.5, 0.1, 0.9], 1: [0.45, 0.5, 0.55], 2: [0.4, 0.4, 0.41]},
    )
    lucky, steady, poor = sorted(found(study, 3), key=lambda c: c.trial.number)
    scores = np.array([0.5, 0.1, 0.9])
    assert lucky.scores == scores.tolist(), "the search's own 0.9 is not counted"
    assert lucky.mean == pytest.approx(scores.mean())
    assert lucky.sd == pytest.approx(scores.std(ddof=1))
    assert lucky.bound == pytest.approx(scores.mean() - scores.std(ddof=1) / math.sqrt(3))
    assert lucky.mean == pytest.approx(steady.mean)
    assert poor.mean < steady.mean  # type: ignore[operator]  # both have seeds
    assert winner(study, 3) == 1
    assert winner(study, 1) is None, "without replicates nobody is a candidate"
    ended = [line for line in diary.lines if line[0] == "ended"]
    assert len(ended) == len(replicates(study, records(study, SPACE)))


def test_of_a_loss_the_lowest_bound_wins_and_of_equals_the_first(tmp_path: Path) -> None:
    study = study_at(tmp_path, "log_loss")
    searched(study, [1.0, 1.1, 1.2], "log_loss")
    run_all(rerunner(study, 2, metric="log_loss"), {0: [1.0, 2.0], 1: [1.3, 1.4], 2: [1.4, 1.3]})
    first = next(c for c in found(study, 2, "log_loss") if c.trial.number == 0)
    assert first.bound == pytest.approx(2.0)  # mean 1.5, sd √½, standard error ½
    assert winner(study, 2, "log_loss") == 1


def test_the_hopeless_get_no_more_seeds(tmp_path: Path) -> None:
    study, said, diary = study_at(tmp_path), list[str](), Diary()
    searched(study, [0.6, 0.5])
    recorder = rerunner(study, 4, say=said.append, listeners=[diary])
    handed = [next_of(recorder)["key"] for _ in range(6)]
    assert handed == [(0, 1), (1, 1), (0, 2), (1, 2), (0, 3), (1, 3)]
    for key, score in {(0, 1): 0.7, (1, 1): 0.1, (0, 2): 0.72}.items():
        finish(recorder, key, score)
    assert recorder.stopped((1, 3)) is None, "one seed proves nothing"
    finish(recorder, (1, 2), 0.12)
    assert len(said) == 1
    assert "trial 1 is given no more seeds" in said[0]
    assert recorder.stopped((1, 3)) == "dropped"
    assert recorder.stopped((0, 3)) is None
    recorder.advance((1, 3), [row(1, 0.9)])
    recorder.end((1, 3), "pruned", "dropped")
    assert [line for line in diary.lines if line[0] == "ended"][-1] == ("ended", 1, "pruned")
    assert next_of(recorder)["key"] == (0, 4)
    assert recorder.next_trial() is None
    finish(recorder, (0, 3), 0.71)
    finish(recorder, (0, 4), 0.69)
    assert {c.trial.number: c.out for c in found(study, 4)} == {0: False, 1: True}
    assert [c.summary()["dropped"] for c in found(study, 4)] == [False, True]
    assert winner(study, 4) == 0
    assert not rerunner(study, 4).left(), "what was decided stands"


def test_nobody_is_dropped_while_it_may_still_win(tmp_path: Path) -> None:
    study = study_at(tmp_path)
    searched(study, [0.6, 0.5])
    keys = run_all(rerunner(study, 3), {0: [0.5, 0.7, 0.6], 1: [0.4, 0.66, 0.5]})
    assert len(keys) == 6


def test_a_restart_goes_on_where_it_was(tmp_path: Path) -> None:
    before = study_at(tmp_path)
    searched(before, [0.6, 0.5])
    recorder = rerunner(before, 2)
    first, second = next_of(recorder), next_of(recorder)
    finish(recorder, first["key"], 0.55)
    recorder.advance(second["key"], [row(1, 0.1), row(2, 0.2)])
    del recorder

    study, diary = study_at(tmp_path), Diary()
    again = rerunner(study, 2, listeners=[diary])
    handed = next_of(again)
    assert (handed["key"], handed["epochs_reported"]) == (second["key"], 2)
    assert handed["config"] == second["config"]
    again.advance(handed["key"], [row(1, 0.1), row(2, 0.2), row(3, 0.5)])
    assert diary.lines[-1] == ("advanced", 1, [3]), "no epoch is told twice"
    again.end(handed["key"], "finished")
    assert run_all(again, {0: [0, 0.6], 1: [0, 0.6]}) == [(0, 2), (1, 2)]
    assert [len(r.epochs) for r in replicates(study, records(study, SPACE))] == [3] * 4
    assert rerunner(study, 2).next_trial() is None


def test_more_seeds_and_new_candidates_add_to_what_is_there(tmp_path: Path) -> None:
    study = study_at(tmp_path)
    searched(study, [0.5, 0.4])
    flat = {n: [0.5, 0.6, 0.55] for n in range(9)}
    assert run_all(rerunner(study, 2), flat) == [(0, 1), (1, 1), (0, 2), (1, 2)]
    assert run_all(rerunner(study, 3), flat) == [(0, 3), (1, 3)]
    searched(study, [0.9, 0.8, 0.7])
    assert run_all(rerunner(study, 2), flat) == [(2, 1), (3, 1), (4, 1), (2, 2), (3, 2), (4, 2)]
    assert [c.trial.number for c in found(study, 2)] == [2, 3, 4, 0]
    assert [len(c.runs) for c in found(study, 2)] == [2] * 4
    assert [len(c.runs) for c in found(study, 3)] == [2, 2, 2, 3]


@pytest.mark.parametrize("metric", ["macro_f1", "log_loss"])
def test_a_diverged_seed_counts_and_gives_no_network(tmp_path: Path, metric: str) -> None:
    study = study_at(tmp_path, metric)
    searched(study, [0.5], metric)
    recorder = rerunner(study, 2, metric=metric)
    finish(recorder, next_of(recorder)["key"], 0.5)
    recorder.end(next_of(recorder)["key"], "diverged", "the loss of epoch 1 is not finite")
    (only,) = found(study, 2, metric)
    assert only.scores == [0.5, METRICS[metric].worst]
    assert [r.replicate for r in only.finished] == [1]
    assert winner(study, 2, metric) == 0


def test_a_failed_seed_takes_its_candidate_out(tmp_path: Path) -> None:
    study, said = study_at(tmp_path), list[str]()
    searched(study, [0.6, 0.5])
    recorder = rerunner(study, 2, say=said.append)
    recorder.end(next_of(recorder)["key"], "failed", "ValueError: no")
    assert said == ["replicate 0/1 failed (ValueError: no): trial 0 cannot win"]
    assert run_all(recorder, {1: [0.1, 0.2]}) == [(1, 1), (1, 2)]
    assert winner(study, 2) == 1


def test_when_time_is_up_candidates_are_judged_by_as_many_seeds(tmp_path: Path) -> None:
    study = study_at(tmp_path)
    searched(study, [0.6, 0.5])
    recorder = rerunner(study, 3, deadline=time.monotonic() + 3600)
    for score in (0.5, 0.1, 0.6):
        finish(recorder, next_of(recorder)["key"], score)
    running = next_of(recorder)["key"]
    recorder.advance(running, [row(1, 0.2)])
    recorder.deadline = time.monotonic() - 1
    assert recorder.stopped(running) == "time budget"
    recorder.end(running, "pruned", "time budget")
    assert recorder.next_trial() is None
    assert len(recorder.left()) == 3
    assert winner(study, 3) is None, "trial 1 has one seed only"

    recorder = rerunner(study, 3)
    handed = next_of(recorder)
    assert (handed["key"], handed["epochs_reported"]) == ((1, 2), 1)
    finish(recorder, handed["key"], 0.9)
    finish(recorder, next_of(recorder)["key"], 0.0)
    chosen = choose(found(study, 3))
    assert chosen is not None
    assert chosen.scores == [0.5, 0.6], "its third seed is left out: trial 1 has two"


def test_a_trial_record_says_where_its_files_are(tmp_path: Path) -> None:
    study = study_at(tmp_path)
    searched(study, [0.6])
    recorder = rerunner(study, 2)
    finish(recorder, next_of(recorder)["key"], 0.5)
    (replicate,) = replicates(study, records(study, SPACE))
    assert isinstance(replicate, TrialRecord)
    assert (replicate.label, replicate.folder) == ("0/1", Path("0/replicates/1"))
    assert replicate.validation == {"macro_f1": 0.5}
