"""Which trial wins, by the scores of instant trials and replicates, and when there is no winner."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from support.instant import InstantBackend, run_small, small_spec

from resp_tune.common.trial_key import TrialKey
from resp_tune.errors import RunError
from resp_tune.harness.select_winner import Winner, select_winner
from resp_tune.study.study import records

Scores = dict[TrialKey, float]


def winner_of(
    folder: Path,
    scores: Scores,
    ends: dict[TrialKey, str] | None = None,
    *,
    count: int = 1,
    metric: str = "macro_f1",
    flags: tuple[str, ...] = (),
) -> Winner:
    """Select the winner of a search of three trials."""
    flags = ("--trials", "3", "--replicates", str(count), "--metric", metric, *flags)
    spec = small_spec(folder, *flags)
    study = run_small(spec, InstantBackend(spec.compute, scores, ends))
    return select_winner(study, records(study, spec.space), spec.options)


def replicated(first: list[float], second: list[float]) -> Scores:
    """Return scores of two candidates' replicates; the first candidate was better in the search."""
    scores = {TrialKey(0): 0.9, TrialKey(1): 0.8, TrialKey(2): 0.1}
    for number, values in enumerate((first, second)):
        scores |= {TrialKey(number, index): v for index, v in enumerate(values, 1)}
    return scores


@pytest.mark.parametrize(("metric", "number"), [("macro_f1", 1), ("log_loss", 2)])
def test_without_replicates_the_best_score_wins(metric: str, number: int, tmp_path: Path) -> None:
    scores = {TrialKey(0): 0.4, TrialKey(1): 0.6, TrialKey(2): 0.2}
    winner = winner_of(tmp_path, scores, metric=metric)
    assert winner.trial.number == number
    assert (winner.runs, winner.chosen, winner.candidates) == ((winner.trial,), None, ())
    assert winner.seeds == [winner.trial.config.seed]
    assert winner.validation["accuracy"] == pytest.approx(scores[TrialKey(number)])


def test_with_replicates_the_best_lower_bound_wins(tmp_path: Path) -> None:
    steady, lucky = [0.6, 0.6, 0.6], [0.9, 0.3, 0.7]  # the means are 0.6 and 0.63
    winner = winner_of(tmp_path, replicated(lucky, steady), count=3)
    assert winner.trial.number == 1
    assert [run.key for run in winner.runs] == [TrialKey(1, index) for index in (1, 2, 3)]
    assert winner.validation["macro_f1"] == pytest.approx(0.6)
    assert winner.chosen is not None
    assert winner.chosen.mean == pytest.approx(0.6)
    listed = winner.candidate_summaries()
    assert {row["number"] for row in listed} == {0, 1, 2}
    assert listed[0]["number"] == 1
    assert len(set(winner.seeds)) == 3


def test_a_diverged_replicate_counts_and_has_no_network(tmp_path: Path) -> None:
    scores = replicated([0.8, 0.8], [0.6, 0.6])
    winner = winner_of(tmp_path, scores, {TrialKey(0, 2): "nan"}, count=2)
    assert winner.trial.number == 1
    scores = replicated([0.8, 0.8], [0.01, 0.3])
    all_others = {TrialKey(1, 1): "nan", TrialKey(1, 2): "nan", TrialKey(2, 1): "nan"}
    again = winner_of(tmp_path / "b", scores, all_others, count=2)
    assert (again.trial.number, len(again.runs)) == (0, 2)


def test_no_finished_trial_is_no_winner(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no trial finished \(trial 0 diverged"):
        winner_of(tmp_path, {}, {TrialKey(n): "nan" for n in range(3)})


def test_a_failed_replicate_is_named(tmp_path: Path) -> None:
    ends = {TrialKey(n, 1): f"ValueError: of {n}" for n in range(3)}
    with pytest.raises(RunError, match=r"replicate of trial 0 failed with: ValueError: of 0"):
        winner_of(tmp_path, replicated([], []), ends, count=2)


def test_diverged_replicates_alone_are_no_winner(tmp_path: Path) -> None:
    ends = {TrialKey(n, index): "nan" for n in range(3) for index in (1, 2)}
    with pytest.raises(RunError, match="all replicates have diverged"):
        winner_of(tmp_path, replicated([], []), ends, count=2)


def test_the_next_best_trials_join_an_ensemble(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    scores = {TrialKey(0): 0.4, TrialKey(1): 0.6, TrialKey(2): 0.2}
    winner = winner_of(tmp_path / "two", scores, flags=("--ensemble", "2"))
    assert [m.trial.number for m in winner.members] == [1, 0]
    assert [m["score"] for m in winner.ensemble_summary() or ()] == pytest.approx([0.6, 0.4])
    assert "the ensemble has" not in caplog.text
    with caplog.at_level("INFO", "resp_tune"):
        every = winner_of(tmp_path / "five", scores, flags=("--ensemble", "5"))
    assert [m.trial.number for m in every.members] == [1, 0, 2]
    assert "the ensemble has 3 of 5 members: 3 trials can be selected" in caplog.text


def test_a_winner_alone_is_no_ensemble(tmp_path: Path) -> None:
    winner = winner_of(tmp_path, {TrialKey(n): 0.1 * n for n in range(3)})
    assert (len(winner.members), winner.ensemble_summary()) == (1, None)


def test_an_ensemble_has_the_best_lower_bounds(tmp_path: Path) -> None:
    steady, lucky = [0.6, 0.6], [0.9, 0.3]
    scores = replicated(lucky, steady) | {TrialKey(2, n): 0.5 for n in (1, 2)}
    winner = winner_of(tmp_path, scores, count=2, flags=("--ensemble", "2"))
    assert [m.trial.number for m in winner.members] == [1, 2]
    assert [len(m.runs) for m in winner.members] == [2, 2]
    assert len(winner.candidates) == 3


def test_trials_of_another_sample_rate_do_not_join(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A model gets one waveform, whose rate all its networks must be for."""
    spec = small_spec(tmp_path, "--trials", "3", "--ensemble", "3")
    scores = {TrialKey(0): 0.4, TrialKey(1): 0.6, TrialKey(2): 0.2}
    study = run_small(spec, InstantBackend(spec.compute, scores, None))
    first, *others = records(study, spec.space)
    rate = 2 * first.config.sample_rate
    apart = dataclasses.replace(first, config=first.config.replace({"sample_rate": rate}))
    with caplog.at_level("INFO", "resp_tune"):
        winner = select_winner(study, [apart, *others], spec.options)
    assert [m.trial.number for m in winner.members] == [1, 2]
    assert "of which 1 with another sample rate, resampling or encoder" in caplog.text
