"""The trial queue over a real study: what is handed out, stored and reported."""

from __future__ import annotations

import itertools
import math
import pickle
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from optuna.trial import TrialState
from support.trial_queues import SPACE, Diary, epochs_of, finish, next_of, queue_of, row, study_at

from resp_tune.common.trial_key import TrialKey
from resp_tune.config import TrialConfig
from resp_tune.errors import UserError
from resp_tune.execution.searcher import StudySearcher
from resp_tune.execution.trainable import TrialTrainable
from resp_tune.execution.trial_context import TrialArtifacts
from resp_tune.study.optuna_internals import SingleWriterStorage
from resp_tune.study.study import (
    RECORDINGS,
    best_of,
    bind_settings,
    read_study,
    records,
    trial_seed,
)
from resp_tune.study.trial_queue import MAX_INITIAL_FAILURES
from resp_tune.training.metrics import METRICS


def test_the_first_trial_is_the_baseline(tmp_path: Path) -> None:
    queue = queue_of(study_at(tmp_path))
    first, second = next_of(queue), next_of(queue)
    assert (first["key"], epochs_of(queue, first["key"])) == (TrialKey(0), 0)
    seeded = {"seed": trial_seed(5, 0), "epochs": 3}
    assert first["config"] == SPACE.baseline().replace(seeded)
    assert second["config"].replace({"seed": 0}) != first["config"].replace({"seed": 0})
    assert second["config"].seed == trial_seed(5, 1) != trial_seed(5, 0)


def test_what_is_settled_is_what_is_recorded(tmp_path: Path) -> None:
    study = study_at(tmp_path)
    settled = queue_of(study, precision="float32")
    assert next_of(settled)["config"].precision == "float32"
    assert records(study, SPACE)[0].config.precision == "float32"


def test_every_end_as_the_study_has_it(tmp_path: Path) -> None:
    study, diary = study_at(tmp_path), Diary()
    queue = queue_of(study, diary)
    for _ in range(4):
        next_of(queue)
    assert queue.next_trial() is None  # the budget is met
    finish(queue, 0, 0.6)
    queue.advance(TrialKey(1), [row(1, 0.1), row(2, 0.2)])
    queue.end(TrialKey(1), "pruned", "scheduler")
    lost = {"epoch": 2, "train_loss": math.nan, "val_loss": math.nan, "seconds": 0.1}
    queue.advance(TrialKey(2), [row(1, 0.3), lost])
    queue.end(TrialKey(2), "diverged", "the loss of epoch 2 is not finite")
    queue.end(TrialKey(3), "failed", "ValueError: no")

    again = read_study(tmp_path / "study.db", "first")
    trials = again.get_trials()
    expected = [TrialState.COMPLETE, TrialState.PRUNED, TrialState.COMPLETE, TrialState.FAIL]
    assert [t.state for t in trials] == expected
    assert [t.value for t in trials] == [0.6, 0.2, METRICS["macro_f1"].worst, None]
    assert trials[0].intermediate_values == pytest.approx({1: 0.2, 2: 0.4, 3: 0.6})
    assert trials[1].intermediate_values == {1: 0.1, 2: 0.2}
    assert trials[2].intermediate_values == {1: 0.3}
    assert trials[2].user_attrs["diverged"] is True
    assert trials[1].user_attrs["stopped"] == "scheduler"
    assert trials[3].user_attrs["error"] == "ValueError: no"

    found = records(again, SPACE)
    assert [r.state for r in found] == ["finished", "pruned", "diverged", "failed"]
    assert [r.score for r in found] == [0.6, None, None, None]
    assert [len(r.epochs) for r in found] == [3, 2, 2, 0]
    assert math.isnan(found[2].epochs[1]["train_loss"])
    assert found[3].error == "ValueError: no"
    assert all(r.seconds >= 0 for r in found)
    assert [r.values["lr"] for r in found] == [t.params["lr"] for t in trials]
    best = best_of(found, "macro_f1")
    assert best is not None
    assert best.number == 0

    assert diary.lines == [
        *[("started", n, trial_seed(5, n)) for n in range(4)],
        ("advanced", 0, [1, 2, 3]),
        ("ended", 0, "finished"),
        ("advanced", 1, [1, 2]),
        ("ended", 1, "pruned"),
        ("advanced", 2, [1, 2]),
        ("ended", 2, "diverged"),
        ("ended", 3, "failed"),
    ]


@pytest.mark.parametrize("metric", sorted(METRICS))
def test_a_diverged_trial_has_the_worst_score(tmp_path: Path, metric: str) -> None:
    study = study_at(tmp_path, metric)
    queue = queue_of(study, metric=metric)
    next_of(queue)
    next_of(queue)
    queue.end(TrialKey(0), "diverged")
    queue.advance(TrialKey(1), [row(e, 0.5, metric) for e in (1, 2, 3)])
    queue.end(TrialKey(1), "finished")
    assert study.trials[0].value == METRICS[metric].worst
    assert study.best_trial.number == 1
    best = best_of(records(study, SPACE), metric)
    assert best is not None
    assert best.number == 1


def test_trials_left_running_come_first(tmp_path: Path) -> None:
    """As after a kill: same number, same config, and what was reported is not lost."""
    first = queue_of(study_at(tmp_path))
    handed = [next_of(first) for _ in range(3)]
    finish(first, 1, 0.75)
    first.advance(TrialKey(0), [row(1, 0.1)])
    first.advance(TrialKey(2), [row(1, 0.2), row(2, 0.3)])
    del first

    study, diary = study_at(tmp_path), Diary()
    second = queue_of(study, diary, budget=5)
    again = [next_of(second), next_of(second)]
    assert [h["key"].number for h in again] == [0, 2]
    assert [h["config"] for h in again] == [handed[0]["config"], handed[2]["config"]]
    assert [epochs_of(second, h["key"]) for h in again] == [1, 2]
    second.advance(TrialKey(0), [row(2, 0.4), row(3, 0.5)])
    second.end(TrialKey(0), "finished")
    second.advance(TrialKey(2), [])  # everything had been reported already
    second.advance(TrialKey(2), [row(3, 0.6)])
    second.end(TrialKey(2), "finished")
    new = [next_of(second), next_of(second)]
    assert [h["key"].number for h in new] == [3, 4]
    assert second.next_trial() is None

    found = records(study, SPACE)
    assert found[2].seconds >= 0.2  # what the first driver had spent on it: two epochs
    assert [[int(r["epoch"]) for r in t.epochs] for t in found] == [[1, 2, 3]] * 3 + [[]] * 2
    assert [t.score for t in found] == [0.5, 0.75, 0.6, None, None]
    assert [t.state for t in found] == ["finished"] * 3 + [None, None]
    assert study.trials[0].intermediate_values == {1: 0.1, 2: 0.4, 3: 0.5}
    assert [line for line in diary.lines if line[0] == "advanced"] == [
        ("advanced", 0, [2, 3]),
        ("advanced", 2, [3]),
    ]


def test_an_interrupted_trial_is_handed_out_again_and_again(tmp_path: Path) -> None:
    configs = []
    for _ in range(3):
        handed = next_of(queue_of(study_at(tmp_path)))
        assert handed["key"].number == 0
        configs.append(handed["config"])
    assert configs[0] == configs[1] == configs[2]
    assert len(study_at(tmp_path).trials) == 1


def test_a_search_that_grows(tmp_path: Path) -> None:
    for budget in (2, 2, 5):
        queue = queue_of(study_at(tmp_path), budget=budget)
        while (handed := queue.next_trial()) is not None:
            finish(queue, handed["key"].number, 0.5)
        assert len(study_at(tmp_path).trials) == budget
    found = records(study_at(tmp_path), SPACE)
    assert [t.number for t in found] == [0, 1, 2, 3, 4]
    baselines = [t for t in found if SPACE.values(SPACE.baseline()) == t.values]
    assert [t.number for t in baselines] == [0]  # tried once, not with every start


def test_a_smaller_budget_hands_out_nothing(tmp_path: Path) -> None:
    queue = queue_of(study_at(tmp_path), budget=3)
    for number in range(3):
        next_of(queue)
        finish(queue, number, 0.5)
    assert queue_of(study_at(tmp_path), budget=2).next_trial() is None


def test_failed_and_pruned_trials_count(tmp_path: Path) -> None:
    queue = queue_of(study_at(tmp_path), budget=3)
    next_of(queue)
    finish(queue, 0, 0.5)
    next_of(queue)
    queue.end(TrialKey(1), "failed", "no")
    next_of(queue)
    queue.end(TrialKey(2), "pruned", "scheduler")
    assert queue.next_trial() is None
    assert queue_of(study_at(tmp_path), budget=3).next_trial() is None


def test_a_deadline_ends_the_search_but_not_what_was_begun(tmp_path: Path) -> None:
    queue = queue_of(study_at(tmp_path), budget=None, deadline=time.monotonic() + 3600)
    assert not queue.source.stop_reason(TrialKey(0))
    assert next_of(queue)["key"].number == 0
    late = queue_of(study_at(tmp_path), budget=None, deadline=time.monotonic() - 1)
    assert late.source.stop_reason(TrialKey(0)) == "time budget"
    assert next_of(late)["key"].number == 0
    assert late.next_trial() is None


def test_without_a_budget_it_goes_on(tmp_path: Path) -> None:
    queue = queue_of(study_at(tmp_path), budget=None)
    assert [next_of(queue)["key"].number for _ in range(6)] == list(range(6))


def test_when_everything_fails_it_gives_up(tmp_path: Path) -> None:
    queue = queue_of(study_at(tmp_path), budget=50)
    for number in range(MAX_INITIAL_FAILURES):
        assert next_of(queue)["key"].number == number
        queue.end(TrialKey(number), "failed", "no")
    assert queue.next_trial() is None


def test_one_success_and_it_goes_on(tmp_path: Path) -> None:
    queue = queue_of(study_at(tmp_path), budget=50)
    next_of(queue)
    finish(queue, 0, 0.5)
    for number in range(1, MAX_INITIAL_FAILURES + 2):
        assert next_of(queue)["key"].number == number
        queue.end(TrialKey(number), "failed", "no")
    assert next_of(queue)["key"].number == MAX_INITIAL_FAILURES + 2


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    settings = {"metric": "macro_f1", "epochs": 3, "parameter lr": {"low": 1e-3, "high": 1e-2}}
    bind_settings(study_at(tmp_path), settings)
    bind_settings(study_at(tmp_path), settings)
    with pytest.raises(UserError) as caught:
        bind_settings(study_at(tmp_path), settings | {"epochs": 5})
    assert str(caught.value) == (
        "search 'first' was started with other settings: epochs was 3, now 5. Give the old "
        "settings, or another --name"
    )


def test_a_hash_is_not_shown_where_words_say_more(tmp_path: Path) -> None:
    settings = {"split seed": 0, RECORDINGS: "3f" * 32}
    bind_settings(study_at(tmp_path), settings)
    for changed, said in (
        ({"split seed": 1, RECORDINGS: "13" * 32}, "other settings: split seed was 0, now 1. Give"),
        ({RECORDINGS: "13" * 32}, "its recordings, or their labels, have changed since. Give"),
    ):
        with pytest.raises(UserError, match=said) as caught:
            bind_settings(study_at(tmp_path), settings | changed)
        assert "3f3f" not in str(caught.value)


def test_a_copied_search_keeps_its_name(tmp_path: Path) -> None:
    study_at(tmp_path)
    with pytest.raises(UserError, match="has the study 'first', not 'second': a copied"):
        read_study(tmp_path / "study.db", "second")


def test_a_study_that_is_not_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist: no search of that name"):
        read_study(tmp_path / "study.db", "first")
    (tmp_path / "study.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(UserError, match="cannot be read as the study 'first'"):
        read_study(tmp_path / "study.db", "first")


def test_seeds_differ_and_repeat() -> None:
    seeds = {trial_seed(search, number) for search in range(20) for number in range(200)}
    assert len(seeds) == 20 * 200
    assert trial_seed(3, 7) == trial_seed(3, 7)
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_what_a_lost_worker_told_is_not_told_twice(tmp_path: Path) -> None:
    """Ray starts the trial with the config it had: the new worker tells all from the first."""
    diary = Diary()
    study = study_at(tmp_path)
    queue = queue_of(study, diary)
    number = next_of(queue)["key"].number
    queue.advance(TrialKey(number), [row(1, 0.1), row(2, 0.2)])
    queue.advance(TrialKey(number), [row(1, 0.1), row(2, 0.2), row(3, 0.3)])
    queue.end(TrialKey(number), "finished")
    (told,) = [t for t in records(study, SPACE) if t.number == number]
    assert [r["epoch"] for r in told.epochs] == [1, 2, 3]
    assert [line[2] for line in diary.lines if line[0] == "advanced"] == [[1, 2], [3]]
    assert told.score == 0.3


@pytest.mark.parametrize("name", ["a?b=1", "c#d", "50%41", "{e}", "ü é", "f&mode=memory"])
def test_a_study_in_a_folder_of_any_name(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    study = study_at(tmp_path / name)
    next_of(queue_of(study))
    assert [p.name for p in tmp_path.iterdir()] == [name]
    assert [p.name for p in (tmp_path / name).iterdir()] == ["study.db"]
    assert len(read_study(tmp_path / name / "study.db", "first").trials) == 1


def test_each_act_is_one_commit(tmp_path: Path) -> None:
    queue = queue_of(study_at(tmp_path))

    def commits() -> int:
        """SQLite's own count of them, in the header of the file."""
        return int.from_bytes((tmp_path / "study.db").read_bytes()[24:28], "big")

    counts = [commits()]
    next_of(queue)
    counts.append(commits())
    queue.advance(TrialKey(0), [row(epoch, 0.5) for epoch in (1, 2, 3)])
    counts.append(commits())
    queue.end(TrialKey(0), "finished")
    counts.append(commits())
    assert [b - a for a, b in itertools.pairwise(counts)] == [1, 1, 1]


def test_an_act_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    queue = queue_of(study_at(tmp_path))
    next_of(queue)
    with pytest.raises(TypeError):
        queue.advance(TrialKey(0), [row(1, 0.5), row(2, 0.5) | {"val_loss": object()}])  # type: ignore[dict-item]  # no JSON
    (trial,) = read_study(tmp_path / "study.db", "first").trials
    assert trial.intermediate_values == {}
    assert set(trial.user_attrs) == {"seed", "config"}


def test_a_config_is_validated_once_on_its_way_to_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searcher = StudySearcher(queue_of(study_at(tmp_path), precision="float32"), lambda: 1)
    built: list[TrialConfig] = []
    validate = TrialConfig.__post_init__

    def note(config: TrialConfig) -> None:
        validate(config)
        built.append(config)

    monkeypatch.setattr(TrialConfig, "__post_init__", note)
    suggested = searcher.suggest("a")
    assert isinstance(suggested, dict)
    made = TrialTrainable.__new__(TrialTrainable)  # without Ray around it
    made.context, made.watchdog = SimpleNamespace(artifacts=TrialArtifacts(tmp_path)), None  # type: ignore[assignment]  # all that is used
    made._begin(pickle.loads(pickle.dumps(suggested)))  # noqa: S301  # as Ray passes it on
    assert built == [made.trial_config]
    assert (built[0].seed, built[0].epochs, built[0].precision) == (trial_seed(5, 0), 3, "float32")


def test_a_report_writes_no_earlier_epochs(tmp_path: Path) -> None:
    """Or n epochs would write O(n²) bytes."""
    queue = queue_of(study_at(tmp_path))
    key = next_of(queue)["key"]
    for epoch in range(1, 40, 2):
        queue.advance(key, [row(epoch, 0.5), row(epoch + 1, 0.5)])
    (trial,) = read_study(tmp_path / "study.db", "first").trials
    reports = [v for name, v in trial.user_attrs.items() if name.startswith("epochs")]
    assert [len(rows) for rows in reports] == [2] * 20
    assert [r["epoch"] for r in records(study_at(tmp_path), SPACE)[0].epochs] == [*range(1, 41)]


def test_a_trial_of_release_010_is_resumed(tmp_path: Path) -> None:
    """Its epochs are all in one attribute."""
    study = study_at(tmp_path)
    key = next_of(queue_of(study))["key"]
    SingleWriterStorage.set_trial_user_attr(study._storage, 1, "epochs", [row(1, 0.1), row(2, 0.2)])  # type: ignore[arg-type]  # it is one
    queue = queue_of(study_at(tmp_path))
    assert epochs_of(queue, next_of(queue)["key"]) == 2
    queue.advance(key, [row(2, 0.2), row(3, 0.3)])
    queue.end(key, "finished")
    (told,) = [t for t in records(study_at(tmp_path), SPACE) if t.key == key]
    assert ([r["epoch"] for r in told.epochs], told.score) == ([1, 2, 3], 0.3)
