"""The undocumented parts of MLflow that resp_tune/tracking/mlflow_internals.py depends on.

A test that fails here after an upgrade of MLflow says what has changed and what to do about it.
Until then keep the upper bound of mlflow in pyproject.toml.
"""

from __future__ import annotations

import inspect
import logging
import sqlite3
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
from support.mlflow_stores import template

from resp_tune.tracking import mlflow_internals
from resp_tune.tracking.mlflow_internals import ADDRESSES, known_schemas, without_package_index


def test_the_head_of_the_schema_is_mlflows_own() -> None:
    from mlflow.store.db.utils import _get_latest_schema_revision

    schemas = known_schemas()
    advice = "mend known_schemas(), or older stores are migrated at the first look"
    assert schemas is not None, f"the migration scripts cannot be read: {advice}"
    assert schemas.head == _get_latest_schema_revision(), f"another head is read: {advice}"  # type: ignore[no-untyped-call]


def test_addresses_are_where_they_were_in_the_database() -> None:
    advice = "mend ADDRESSES and replace_addresses(), or a store that was moved loses its models"
    with closing(sqlite3.connect(template())) as database:
        for table, column in {**ADDRESSES, "experiments": "artifact_location"}.items():
            columns = [row[1] for row in database.execute(f"PRAGMA table_info({table})")]
            assert column in columns, f"{table} has no {column}: {advice}"


def test_a_server_is_asked_by_mlflows_own_request() -> None:
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    wanted = {"host_creds", "endpoint", "method", "max_retries", "raise_on_status", "timeout"}
    parameters = inspect.signature(http_request).parameters
    missing = wanted - parameters.keys()
    assert not missing, f"request() passes {missing}, which MLflow no longer takes"
    assert len(inspect.signature(get_default_host_creds).parameters) >= 1


def test_the_page_still_reads_saved_views() -> None:
    """tests/test_ui_browser.py looks at the page itself."""
    pages = Path(mlflow.__file__).parent / "server" / "js" / "build" / "static" / "js"
    parts = ("mlflow.sharedViewState", "viewStateShareKey", "compareRunsMode", "workflowType")
    texts = [path.read_text(errors="replace") for path in pages.rglob("*.js")]
    for part in parts:
        assert any(part in text for text in texts), (
            f"MLflow's page no longer knows '{part}': open a search's link `view` in a browser and "
            "adapt tracking/ui_links.py"
        )
    assert parts[0] + "." == mlflow_internals.VIEW_TAG


def test_names_of_settings_and_loggers() -> None:
    from mlflow.environment_variables import MLFLOW_SERVER_ENABLE_JOB_EXECUTION
    from mlflow.store.db import utils

    assert MLFLOW_SERVER_ENABLE_JOB_EXECUTION.name == mlflow_internals.SERVER_JOBS
    assert utils._logger.name == mlflow_internals.DATABASE_LOGGER
    assert logging.getLogger(mlflow_internals.DATABASE_LOGGER) is utils._logger
    server = Path(mlflow.__file__).parent / "server" / "__init__.py"
    name = mlflow_internals.SERVER_STORE.removeprefix("MLFLOW_")
    assert name in server.read_text(), (
        "MLflow's server reads its store from another variable: adapt ui.py, or the store's URI "
        "must be an argument, which other users of the machine can see"
    )


def test_requirements_are_checked_without_an_index(monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.utils import requirements_utils as utils

    def never() -> None:
        raise AssertionError(
            "MLflow makes an index of all installed modules again, which takes seconds at the end "
            "of each search: mend without_package_index()"
        )

    monkeypatch.setattr(utils, "_MODULES_TO_PACKAGES", None)
    monkeypatch.setattr(utils.importlib_metadata, "packages_distributions", never)
    with without_package_index():
        assert utils._check_requirement_satisfied(f"mlflow=={mlflow.__version__}") is None
        assert utils._check_requirement_satisfied("mlflow==0.1") is not None
    assert utils._MODULES_TO_PACKAGES is None  # as it was, for whoever infers requirements
