"""A tracking store of another MLflow version is refused, and not a byte of it changes."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from importlib.metadata import version
from pathlib import Path

import pytest
import sqlalchemy
from support.mlflow_stores import with_mlflow_store
from support.ports import free_port
from support.postgres import PASSWORD, postgres, why_none

from resp_tune import ui
from resp_tune.cli import run
from resp_tune.errors import UserError
from resp_tune.tracking.client import connect
from resp_tune.tracking.load_trial import load_trial_run
from resp_tune.tracking.mlflow_internals import known_schemas
from resp_tune.tracking.registry import fetch_bundle
from resp_tune.tracking.store_probe import check_version, probe
from resp_tune.tracking.ui_links import list_searches

OLDER, NEWER = "7d34483879f0", "f00d00f00d00"  # the first is of MLflow 3.11


def store_of(folder: Path, revision: str) -> Path:
    file = with_mlflow_store(folder) / "mlflow.db"
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE alembic_version SET version_num = ?", (revision,))
        # As an older MLflow's: a later migration creates this table.
        database.execute("DROP TABLE IF EXISTS label_schemas")
    return file


@pytest.mark.parametrize(
    ("revision", "words"),
    [
        (OLDER, r"made by an older version than MLflow 3\S+ .*of 2026-04-08\).* mlflow db upgrade"),
        (NEWER, r"made by a newer version than MLflow 3.*pip install -U mlflow"),
    ],
)
def test_no_command_opens_or_changes_it(
    revision: str, words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = store_of(tmp_path / "results", revision)
    uri, before = f"sqlite:///{file}", file.read_bytes()
    looks = [
        lambda: probe(uri),
        lambda: connect(uri),
        lambda: list_searches(uri),
        lambda: load_trial_run(uri, "0" * 32),
        lambda: fetch_bundle("models:/resp_tune@champion", uri, tmp_path / "fetched"),
    ]
    for look in looks:
        with pytest.raises(UserError, match=words) as caught:
            look()
        assert "\n" not in str(caught.value)
    assert run(ui.main, ["--tracking-uri", uri]) == 2
    assert capfd.readouterr().err.count("error:") == 1
    assert file.read_bytes() == before
    assert [path.name for path in file.parent.iterdir() if path != file] in ([], ["mlflow.db.lock"])


def test_a_store_of_this_version_passes(tmp_path: Path) -> None:
    file = with_mlflow_store(tmp_path) / "mlflow.db"
    before = file.read_bytes()
    check_version(f"sqlite:///{file}")
    assert file.read_bytes() == before


def test_a_missing_or_empty_store_passes_and_is_not_created(tmp_path: Path) -> None:
    check_version(f"sqlite:///{tmp_path}/mlflow.db")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "empty.db").touch()
    check_version(f"sqlite:///{tmp_path}/empty.db")
    assert (tmp_path / "empty.db").read_bytes() == b""


@pytest.mark.skipif(why_none() is not None, reason=str(why_none()))
def test_a_postgresql_of_another_version_is_refused_too() -> None:
    with postgres(free_port()) as database:
        check_version(database.uri)  # no tables yet
        engine = sqlalchemy.create_engine(database.uri)
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("CREATE TABLE alembic_version (version_num TEXT)"))
            connection.execute(sqlalchemy.text(f"INSERT INTO alembic_version VALUES ('{NEWER}')"))  # noqa: S608  # our own
        for look in (check_version, probe, connect):
            with pytest.raises(UserError, match="newer version than MLflow") as caught:
                look(database.uri)
            assert PASSWORD not in str(caught.value)
        assert sqlalchemy.inspect(engine).get_table_names() == ["alembic_version"]
        engine.dispose()
    check_version(database.uri)  # MLflow's own error says that nothing answers


@pytest.mark.skipif(why_none() is not None, reason=str(why_none()))
def test_a_user_of_postgresql_needs_the_right_to_each_write() -> None:
    with postgres(free_port()) as database:
        connect(database.uri)
        engine = sqlalchemy.create_engine(database.uri, isolation_level="AUTOCOMMIT")
        uri = database.uri.replace(f"tests:{PASSWORD}", "reader:secret")

        def run_sql(*statements: str) -> None:
            with engine.begin() as connection:
                for statement in statements:
                    connection.execute(sqlalchemy.text(statement))

        run_sql("CREATE ROLE reader LOGIN PASSWORD 'secret'")
        tables = "ALL TABLES IN SCHEMA public"
        for grant in (f"SELECT ON {tables}", f"INSERT, UPDATE ON {tables}"):
            run_sql(f"GRANT {grant} TO reader")
            with pytest.raises(UserError, match="lets this user read and not write"):
                probe(uri)
        run_sql("GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO reader")
        probe(uri)
        run_sql("REVOKE INSERT ON metrics FROM reader")
        with pytest.raises(UserError, match="lets this user read and not write"):
            probe(uri)
        engine.dispose()


def test_the_version_is_that_of_the_installed_mlflow() -> None:
    schemas = known_schemas()
    assert schemas is not None
    assert schemas.head in schemas.dates
    assert OLDER in schemas.dates, f"choose another old revision for MLflow {version('mlflow')}"
    assert NEWER not in schemas.dates
