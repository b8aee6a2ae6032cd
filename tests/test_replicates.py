"""Replicates: what is handed out in which order, who is dropped, who wins, what a restart finds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from support.trial_queues import Diary, epochs_of, next_of, queue_of, row, settings_of, study_at

from resp_tune.common.trial_key import TrialKey
from resp_tune.errors import UserError
from resp_tune.space.search_space import load_space
from resp_tune.study.replicates import (
    MAX_CANDIDATES,
    Candidate,
    ReplicateSource,
    candidates,
    check_count,
    eligible,
    replicate_seed,
    replicates,
    selectable,
)
from resp_tune.study.study import TrialRecord, records, trial_seed
from resp_tune.study.trial_queue import TrialQueue
from resp_tune.training.metrics import METRICS

SPACE = load_space("default.yaml")


def searched(study: optuna.Study, scores: Sequence[float], metric: str = "macro_f1") -> None:
    """Add finished trials with these scores."""
    queue = queue_of(study, metric=metric, budget=len(study.trials) + len(scores))
    for score in scores:
        key = next_of(queue)["key"]
        queue.advance(key, [row(e, score, metric) for e in (1, 2, 3)])
        queue.end(key, "finished")


def replicate_queue_of(study: optuna.Study, count: int, **more: Any) -> TrialQueue:
    settings = settings_of(more.pop("metric", "macro_f1"))
    return TrialQueue(ReplicateSource(study, records(study, SPACE), settings, count), **more)


def finish(queue: TrialQueue, key: TrialKey, score: float) -> None:
    queue.advance(key, [row(e, score, queue.source.settings.metric) for e in (1, 2, 3)])
    queue.end(key, "finished")


def run_all(queue: TrialQueue, scores: Mapping[int, Sequence[float]]) -> list[Any]:
    """Run what is left one by one; replicate `index` of a trial has `scores[number][index − 1]`."""
    keys = []
    while (handed := queue.next_trial()) is not None:
        number, index = handed["key"]
        keys.append(handed["key"])
        finish(queue, handed["key"], scores[number][index - 1])
    return keys


def found(study: optuna.Study, count: int, metric: str = "macro_f1") -> list[Candidate]:
    trials = records(study, SPACE)
    runs = replicates(study, trials)
    return candidates(trials, runs, metric=metric, count=count)


def winner(study: optuna.Study, count: int, metric: str = "macro_f1") -> int | None:
    chosen = selectable(found(study, count, metric), count)
    return chosen[0].trial.number if chosen else None


def test_all_first_seeds_come_before_second_ones(tmp_path: Path) -> None:
    study = study_at(tmp_path)
    searched(study, [0.1, 0.5, 0.2, 0.4, 0.5, 0.3])
    assert len(study.trials) == 6
    queue = replicate_queue_of(study, 2)
    handed = [next_of(queue) for _ in range(2 * MAX_CANDIDATES)]
    best = [1, 4, 3, 5]
    assert [h["key"] for h in handed] == [(n, 1) for n in best] + [(n, 2) for n in best]
    assert queue.next_trial() is None
    seeds = {h["config"].seed for h in handed}
    assert len(seeds) == 8
    assert seeds.isdisjoint({trial_seed(5, n) for n in range(6)})
    own = {t.number: t.config for t in records(study, SPACE)}
    for h in handed:
        number, index = h["key"]
        assert h["config"].seed == replicate_seed(5, number, index)
        assert h["config"].replace({"seed": own[number].seed}) == own[number]
        assert h["key"].folder == Path(f"{number}/replicates/{index}")
        assert epochs_of(queue, h["key"]) == 0
    assert len(study.trials) == 6, "replicates are no trials of the study"


def test_the_best_bound_wins_and_not_the_luckiest(tmp_path: Path) -> None:
    study, diary = study_at(tmp_path), Diary()
    searched(study, [0.9, 0.5, 0.6])
    run_all(
        replicate_queue_of(study, 3, listeners=[diary]),
        {0: [0.5, 0.1, 0.9], 1: [0.45, 0.5, 0.55], 2: [0.4, 0.4, 0.41]},
    )
    lucky, steady, poor = sorted(found(study, 3), key=lambda c: c.trial.number)
    scores = np.array([0.5, 0.1, 0.9])
    assert lucky.scores == scores.tolist(), "the search's own 0.9 is not counted"
    assert lucky.mean == pytest.approx(scores.mean())
    assert lucky.sd == pytest.approx(scores.std(ddof=1))
    assert lucky.lower_bound == pytest.approx(scores.mean() - scores.std(ddof=1) / math.sqrt(3))
    assert lucky.mean == pytest.approx(steady.mean)
    assert poor.mean < steady.mean  # type: ignore[operator]  # both have seeds
    assert winner(study, 3) == 1
    assert winner(study, 1) is None, "without replicates nobody is a candidate"
    ended = [line for line in diary.lines if line[0] == "ended"]
    assert len(ended) == len(replicates(study, records(study, SPACE)))


def test_of_a_loss_the_lowest_bound_wins_and_of_equals_the_first(tmp_path: Path) -> None:
    study = study_at(tmp_path, "log_loss")
    searched(study, [1.0, 1.1, 1.2], "log_loss")
    run_all(
        replicate_queue_of(study, 2, metric="log_loss"),
        {0: [1.0, 2.0], 1: [1.3, 1.4], 2: [1.4, 1.3]},
    )
    first = next(c for c in found(study, 2, "log_loss") if c.trial.number == 0)
    assert first.lower_bound == pytest.approx(2.0)  # mean 1.5, sd √½, standard error ½
    assert winner(study, 2, "log_loss") == 1


def test_the_hopeless_get_no_more_seeds(said: list[str], tmp_path: Path) -> None:
    study, diary = study_at(tmp_path), Diary()
    searched(study, [0.6, 0.5])
    queue = replicate_queue_of(study, 5, listeners=[diary])
    handed = [next_of(queue)["key"] for _ in range(8)]
    assert handed == [(n, index) for index in (1, 2, 3, 4) for n in (0, 1)]
    for index, scores in enumerate([(0.7, 0.1), (0.72, 0.12), (0.71, 0.11)], start=1):
        assert queue.source.stop_reason(TrialKey(1, 4)) is None, (
            "two seeds are near each other by chance"
        )
        assert not said
        finish(queue, TrialKey(0, index), scores[0])
        finish(queue, TrialKey(1, index), scores[1])
    assert len(said) == 1
    assert "trial 1 gets no more replicates" in said[0]
    assert queue.source.stop_reason(TrialKey(1, 4)) == "dropped"
    assert queue.source.stop_reason(TrialKey(0, 4)) is None
    queue.advance(TrialKey(1, 4), [row(1, 0.9)])
    queue.end(TrialKey(1, 4), "pruned", "dropped")
    assert [line for line in diary.lines if line[0] == "ended"][-1] == ("ended", 1, "pruned")
    assert next_of(queue)["key"] == (0, 5)
    assert queue.next_trial() is None
    finish(queue, TrialKey(0, 4), 0.69)
    finish(queue, TrialKey(0, 5), 0.69)
    assert [c.trial.number for c in eligible(found(study, 5))] == [0]
    assert winner(study, 5) == 0
    assert replicate_queue_of(study, 5).next_trial() is None, "what was decided stands"
    assert len(said) == 1


def test_who_was_dropped_comes_back_when_the_best_falls_behind_it(tmp_path: Path) -> None:
    """Else a poor trial would win over one whose bound is better."""
    study = study_at(tmp_path)
    searched(study, [0.6, 0.5])
    scores = {0: [0.8, 0.8, 0.81, 0.1, 0.1], 1: [0.65, 0.66, 0.65, 0.66, 0.65]}
    keys = run_all(replicate_queue_of(study, 5), scores)
    assert keys == [(0, 1), (1, 1), (0, 2), (1, 2), (0, 3), (1, 3), (0, 4), (1, 4), (0, 5), (1, 5)]
    assert winner(study, 5) == 1
    assert found(study, 5)[0].trial.number == 1


def test_a_proven_trial_is_not_forgotten_for_lucky_ones(tmp_path: Path) -> None:
    study = study_at(tmp_path)
    searched(study, [0.5])
    run_all(replicate_queue_of(study, 2), {0: [0.5, 0.51]})
    searched(study, [0.6] * MAX_CANDIDATES)
    poor = {n: [0.3, 0.31] for n in range(1, 1 + MAX_CANDIDATES)}
    assert len(run_all(replicate_queue_of(study, 2), poor)) == 2 * MAX_CANDIDATES
    assert winner(study, 2) == 0


def test_fewer_replicates_than_before_are_refused(tmp_path: Path) -> None:
    study = study_at(tmp_path)
    searched(study, [0.5])
    check_count(study, 1)
    run_all(replicate_queue_of(study, 3), {0: [0.5, 0.51, 0.52]})
    check_count(study, 3)
    check_count(study, 4)
    with pytest.raises(UserError, match=r"has 3 replicates.* give --replicates 3 or more"):
        check_count(study, 2)


def test_nobody_is_dropped_while_it_may_still_win(tmp_path: Path) -> None:
    study = study_at(tmp_path)
    searched(study, [0.6, 0.5])
    keys = run_all(replicate_queue_of(study, 3), {0: [0.5, 0.7, 0.6], 1: [0.4, 0.66, 0.5]})
    assert len(keys) == 6


def test_a_restart_goes_on_where_it_was(tmp_path: Path) -> None:
    before = study_at(tmp_path)
    searched(before, [0.6, 0.5])
    queue = replicate_queue_of(before, 2)
    first, second = next_of(queue), next_of(queue)
    finish(queue, first["key"], 0.55)
    queue.advance(second["key"], [row(1, 0.1), row(2, 0.2)])
    del queue

    study, diary = study_at(tmp_path), Diary()
    again = replicate_queue_of(study, 2, listeners=[diary])
    handed = next_of(again)
    assert (handed["key"], epochs_of(again, handed["key"])) == (second["key"], 2)
    assert handed["config"] == second["config"]
    again.advance(handed["key"], [row(1, 0.1), row(2, 0.2), row(3, 0.5)])
    assert diary.lines[-1] == ("advanced", 1, [3]), "no epoch is told twice"
    again.end(handed["key"], "finished")
    assert run_all(again, {0: [0, 0.6], 1: [0, 0.6]}) == [(0, 2), (1, 2)]
    assert [len(r.epochs) for r in replicates(study, records(study, SPACE))] == [3] * 4
    assert replicate_queue_of(study, 2).next_trial() is None


def test_more_seeds_and_new_candidates_add_to_what_is_there(tmp_path: Path) -> None:
    study = study_at(tmp_path)
    searched(study, [0.5, 0.4])
    flat = {n: [0.5, 0.6, 0.55] for n in range(9)}
    assert run_all(replicate_queue_of(study, 2), flat) == [(0, 1), (1, 1), (0, 2), (1, 2)]
    assert run_all(replicate_queue_of(study, 3), flat) == [(0, 3), (1, 3)]
    searched(study, [0.9, 0.8, 0.7])
    assert run_all(replicate_queue_of(study, 2), flat) == [
        (2, 1),
        (3, 1),
        (4, 1),
        (2, 2),
        (3, 2),
        (4, 2),
    ]
    runs = {c.trial.number: len(c.runs) for c in found(study, 3)}
    assert runs == {0: 3, 1: 3, 2: 2, 3: 2, 4: 2}


@pytest.mark.parametrize("metric", ["macro_f1", "log_loss"])
def test_a_diverged_seed_counts_and_gives_no_network(tmp_path: Path, metric: str) -> None:
    study = study_at(tmp_path, metric)
    searched(study, [0.5], metric)
    queue = replicate_queue_of(study, 2, metric=metric)
    finish(queue, next_of(queue)["key"], 0.5)
    queue.end(next_of(queue)["key"], "diverged", "the loss of epoch 1 is not finite")
    (only,) = found(study, 2, metric)
    assert only.scores == [0.5, METRICS[metric].worst]
    assert [r.key.replicate for r in only.finished] == [1]
    assert winner(study, 2, metric) == 0


def test_a_failed_seed_takes_its_candidate_out_until_it_is_run_again(
    said: list[str], tmp_path: Path
) -> None:
    study = study_at(tmp_path)
    searched(study, [0.6, 0.5])
    queue = replicate_queue_of(study, 2)
    queue.end(next_of(queue)["key"], "failed", "ValueError: no")
    assert len(said) == 1
    assert said[0].startswith("replicate 0/1 failed (ValueError: no): trial 0 cannot win")
    assert run_all(queue, {1: [0.1, 0.2]}) == [(1, 1), (1, 2)]
    assert winner(study, 2) == 1
    assert run_all(replicate_queue_of(study, 2), {0: [0.7, 0.8]}) == [(0, 1), (0, 2)]
    assert winner(study, 2) == 0


def test_nobody_wins_before_all_seeds_are_there(tmp_path: Path) -> None:
    study = study_at(tmp_path)
    searched(study, [0.6, 0.5])
    queue = replicate_queue_of(study, 2)
    for score in (0.5, 0.1, 0.6):
        finish(queue, next_of(queue)["key"], score)
        assert winner(study, 2) in (None, 0)
    finish(queue, next_of(queue)["key"], 0.9)
    assert winner(study, 2) == 0


def test_what_a_killed_driver_left_running_is_ended_when_nobody_needs_it(tmp_path: Path) -> None:
    study, diary = study_at(tmp_path), Diary()
    searched(study, [0.5])
    next_of(replicate_queue_of(study, 2))
    searched(study, [0.6] * MAX_CANDIDATES)
    flat = {n: [0.6, 0.6] for n in range(1, 1 + MAX_CANDIDATES)}
    run_all(replicate_queue_of(study, 2, listeners=[diary]), flat)
    left = replicates(study, records(study, SPACE))[0]
    assert (left.number, left.state) == (0, "pruned")
    assert diary.lines[-1] == ("ended", 0, "pruned")


def test_a_trial_record_says_where_its_files_are(tmp_path: Path) -> None:
    study = study_at(tmp_path)
    searched(study, [0.6])
    queue = replicate_queue_of(study, 2)
    finish(queue, next_of(queue)["key"], 0.5)
    (replicate,) = replicates(study, records(study, SPACE))
    assert isinstance(replicate, TrialRecord)
    assert (replicate.key.label, replicate.key.folder) == ("0/1", Path("0/replicates/1"))
    assert replicate.validation == {"macro_f1": 0.5}
