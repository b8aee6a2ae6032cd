"""The stages of a search, with trials that train nothing: what runs, when, and how often."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from support.instant import Events, InstantBackend, run_small, small_spec, small_study

from resp_tune.common.trial_key import TrialKey
from resp_tune.errors import RunError
from resp_tune.execution.searcher import RestartTrialsError
from resp_tune.harness.stages import choose_trials_per_gpu, needs_trials
from resp_tune.study.replicates import replicates
from resp_tune.study.study import records


def test_trials_run_first_then_replicates_of_the_best(tmp_path: Path) -> None:
    spec, events = small_spec(tmp_path, "--trials", "6", "--replicates", "2"), Events()
    scores = {TrialKey(number): 0.1 * number for number in range(6)}
    backend = InstantBackend(spec.compute, scores)
    study = run_small(spec, backend, events)
    trials = records(study, spec.space)
    assert [t.state for t in trials] == ["finished"] * 6
    assert [len(t.epochs) for t in trials] == [3] * 6
    best = ["2", "3", "4", "5"]
    assert sorted(events.of("ended")[:6]) == list("012345")
    assert sorted(events.of("ended")[6:]) == [f"{n}/{i}" for n in best for i in (1, 2)]
    assert events.of("started") == list(dict.fromkeys(events.of("started"))), "each once"
    assert [r.state for r in replicates(study, trials)] == ["finished"] * 8
    assert backend.log == ["check", "run", "run"]


def test_a_complete_search_starts_nothing(tmp_path: Path) -> None:
    spec = small_spec(tmp_path, "--trials", "2", "--replicates", "2")
    run_small(spec, InstantBackend(spec.compute))
    again, events = InstantBackend(spec.compute), Events()
    run_small(spec, again, events)
    assert (again.log, events.seen) == ([], [])


def test_an_extended_search_runs_what_is_missing(tmp_path: Path) -> None:
    run_small(spec := small_spec(tmp_path, "--trials", "2"), InstantBackend(spec.compute))
    more, events = small_spec(tmp_path, "--trials", "3"), Events()
    run_small(more, InstantBackend(more.compute), events)
    assert events.of("ended") == ["2"]


def test_a_failed_check_starts_no_trial(tmp_path: Path) -> None:
    class Broken(InstantBackend):
        def check(self, *_: Any) -> None:
            raise RunError("one batch of the baseline fails")

    spec = small_spec(tmp_path, "--trials", "2")
    with pytest.raises(RunError, match="one batch"):
        run_small(spec, Broken(spec.compute))
    assert small_study(spec).get_trials() == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RestartTrialsError])
def test_trials_that_were_cut_off_keep_their_number_and_epochs(
    error: type[BaseException], tmp_path: Path
) -> None:
    class CutOff(InstantBackend):
        """Fails once, when a trial is in its second epoch; the same process or the next resumes."""

        def run(self, *given: Any) -> None:
            plain = self.trainable

            def failing(trial: Any) -> dict[str, Any]:
                if trial.epoch == 1 and trial.key == TrialKey(1):
                    raise error("the worker is gone")
                return plain.step(trial)

            if "run" not in self.log:
                self.trainable = type("Failing", (plain,), {"step": failing})
            try:
                super().run(*given)
            finally:
                self.trainable = plain

    spec, events = small_spec(tmp_path, "--trials", "3"), Events()
    backend = CutOff(spec.compute)
    if error is KeyboardInterrupt:
        with pytest.raises(KeyboardInterrupt):
            run_small(spec, backend, events)
    study = run_small(spec, backend, events)
    trials = study.get_trials()
    assert [t.number for t in trials] == [0, 1, 2]
    assert {t.state for t in trials} == {TrialState.COMPLETE}
    assert [sorted(t.intermediate_values) for t in trials] == [[1, 2, 3]] * 3
    assert sorted(events.of("ended")) == ["0", "1", "2"]
    assert events.of("started").count("1") == 2


def test_as_many_trials_at_once_as_there_are_slots(tmp_path: Path) -> None:
    spec, events = small_spec(tmp_path, "--trials", "5"), Events()
    run_small(spec, InstantBackend(spec.compute), events)
    at_once = highest = 0
    for event, _ in events.seen:
        at_once += {"started": 1, "ended": -1}.get(event, 0)
        highest = max(highest, at_once)
    assert highest == spec.compute.slots.concurrency == 2


def test_failures_and_divergence_end_their_trial_alone(tmp_path: Path) -> None:
    spec = small_spec(tmp_path, "--trials", "4")
    ends = {TrialKey(1): "ValueError: no", TrialKey(2): "nan"}
    study = run_small(spec, InstantBackend(spec.compute, ends=ends))
    trials = records(study, spec.space)
    assert [t.state for t in trials] == ["finished", "failed", "diverged", "finished"]
    assert trials[1].error == "ValueError: no"
    assert [t.score for t in trials] == [0.5, None, None, 0.5]


def test_a_time_budget_that_is_spent_hands_out_no_trial(tmp_path: Path) -> None:
    spec = small_spec(tmp_path, "--time-budget", "1s")
    backend = InstantBackend(spec.compute)
    backend.check = lambda *_: None  # type: ignore[method-assign]
    study = run_small(spec, backend)
    ended = len(study.get_trials())
    assert ended > 0
    assert needs_trials(study, None), "without a number of trials, time is what ends a search"
    assert not needs_trials(study, ended)
    assert needs_trials(study, ended + 1)


def test_on_a_cpu_auto_is_one_trial_a_gpu(tmp_path: Path, said: list[str]) -> None:
    spec = small_spec(tmp_path, "--trials-per-gpu", "auto")
    assert choose_trials_per_gpu(spec) is spec
    assert "trials per GPU: 1" in said[-1]
