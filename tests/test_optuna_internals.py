"""The private parts of Optuna: that they are as we know them, and what happens if they are not."""

from __future__ import annotations

import ast
import re
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.samplers import CmaEsSampler
from optuna.storages import BaseStorage, RDBStorage
from optuna.testing.pytest_storages import StorageTestCase
from support.trial_queues import SPACE, finish, next_of, queue_of, study_at

import resp_tune
from resp_tune.study.optuna_internals import (
    COLUMNS,
    SafeCmaEsSampler,
    SingleWriterStorage,
    fast_storage,
    reopen_trial,
    stored_trial,
)
from resp_tune.study.study import open_study, read_study, records

WHAT_TO_DO = """
This version of Optuna differs from 5.0 in a part that resp_tune relies on and Optuna does not
promise. Keep the upper bound of `optuna` in pyproject.toml at the last version that passes, then:
1. read the release notes and `git diff` of optuna/storages/_rdb and optuna/samplers/_cmaes.py;
2. mend resp_tune/study/optuna_internals.py, the only file that uses such parts: the base class of
   `SingleWriterStorage`, columns of tables in COLUMNS and the two INSERT statements beside it,
   sessions in `SingleWriterStorage.one_commit`, the key and method of CMA-ES in
   `SafeCmaEsSampler`, how samplers read trials in `ScoredStudy`, ids in `reopen_trial` and
   `stored_trial`;
3. raise the bound. Without step 2 searches still run if only the tables differ: Optuna's own
   storage is used then, with a warning.
"""


@pytest.fixture(scope="module")
def empty_study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create Optuna's tables once: they take longer than any of its tests."""
    path = tmp_path_factory.mktemp("optuna") / "study.db"
    database = RDBStorage(f"sqlite:///{path}")
    database.remove_session()
    database.engine.dispose()
    return path


class TestSingleWriterStorage(StorageTestCase):
    """Optuna's own tests of a storage."""

    @pytest.fixture
    def storage(self, tmp_path: Path, empty_study: Path) -> Iterator[BaseStorage]:
        shutil.copy(empty_study, tmp_path / "study.db")
        database = RDBStorage(f"sqlite:///{tmp_path}/study.db")
        yield SingleWriterStorage(database)
        database.remove_session()
        database.engine.dispose()


def test_the_private_parts_are_as_we_know_them(tmp_path: Path) -> None:
    database = RDBStorage(f"sqlite:///{tmp_path}/study.db")
    known: list[tuple[Any, str]] = [
        (database, "engine"),
        (database, "scoped_session"),
        (database, "remove_session"),
        (database, "check_trial_is_updatable"),
        (CmaEsSampler, "_restore_optimizer"),
        (optuna.Study, "_get_trials"),
    ]
    for owner, name in known:
        assert hasattr(owner, name), f"{name}{WHAT_TO_DO}"
    assert isinstance(fast_storage(database), SingleWriterStorage), f"columns{WHAT_TO_DO}"

    study = optuna.create_study(storage=SingleWriterStorage(database))
    trial = study.ask()
    trial.set_user_attr("seed", 3)
    assert stored_trial(trial).user_attrs == {"seed": 3}, WHAT_TO_DO
    again = reopen_trial(study, stored_trial(trial))
    again.report(0.5, 1)
    study.tell(again, 1.0)
    assert stored_trial(trial).intermediate_values == {1: 0.5}, WHAT_TO_DO


def test_cma_es_reads_its_optimiser_by_our_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    real = SafeCmaEsSampler._restore_optimizer

    def note(self: SafeCmaEsSampler, trials: Any) -> Any:
        optimiser = real(self, trials)
        read.append(optimiser is not None)
        return optimiser

    monkeypatch.setattr(SafeCmaEsSampler, "_restore_optimizer", note)
    study = optuna.create_study(sampler=SafeCmaEsSampler(seed=0, n_startup_trials=1))
    study.optimize(
        lambda t: t.suggest_float("x", 0, 1) ** 2 + t.suggest_float("y", 0, 1), n_trials=20
    )
    assert any(read), f"the key of the optimiser{WHAT_TO_DO}"


PRIVATE = re.compile(r"^_(storage|trial_id|study_id|restore_optimizer|backend)$")


def test_no_other_file_uses_private_parts_of_optuna() -> None:
    for path in Path(resp_tune.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        modules = [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
        private = {name for name in used if PRIVATE.match(name)}
        private |= {m for m in modules if m.startswith("optuna") and "._" in m}
        if path.name != "optuna_internals.py" and "self._storage" not in path.read_text():
            assert private == set(), f"{path}: move it to study/optuna_internals.py"


@pytest.mark.parametrize("table", COLUMNS)
def test_a_table_with_an_unknown_column_is_left_to_optuna(
    table: str, tmp_path: Path, said: list[str]
) -> None:
    queue = queue_of(study_at(tmp_path), budget=2)
    finish(queue, next_of(queue)["key"].number, 0.5)
    with closing(sqlite3.connect(tmp_path / "study.db")) as database:
        database.execute(f"ALTER TABLE {table} ADD COLUMN tomorrow TEXT")
    study = study_at(tmp_path)
    assert len(said) == 1
    assert "tomorrow" in said[0]
    assert "slower" in said[0]
    queue = queue_of(study, budget=2)
    finish(queue, next_of(queue)["key"].number, 0.75)
    assert queue.next_trial() is None
    stored = records(read_study(tmp_path / "study.db", "first"), SPACE)
    assert [(t.score, len(t.epochs)) for t in stored] == [(0.5, 3), (0.75, 3)]


def test_known_tables_are_written_fast(tmp_path: Path, said: list[str]) -> None:
    study = open_study(tmp_path / "study.db", "first", "macro_f1", optuna.samplers.RandomSampler())
    assert isinstance(study._storage, SingleWriterStorage)
    assert said == []
