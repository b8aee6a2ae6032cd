"""The record of test-set accesses: an access is written down before the test set is opened.

A model in its search's folder is on the search's record: the study, and `summary.json` after it.
One in any other folder (moved, or made by `train`) keeps `test_readings.json` beside its weights.
The same weights on recordings that have changed since are another access.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resp_tune.common.paths import write_atomically
from resp_tune.errors import UserError
from resp_tune.harness.lock import exclusive_lock
from resp_tune.harness.result_files import write_summary
from resp_tune.reporting.report_html import render
from resp_tune.study.study import READINGS, read_study
from resp_tune.tracking.registry import same_access
from resp_tune.tracking.uri import root_cause
from resp_tune.training.model_bundle import Bundle

logger = logging.getLogger(__name__)

KEPT = "test_readings.json"
_JSON_ERRORS = (ValueError, TypeError, KeyError, RecursionError)

Entry = Mapping[str, Any]


def access_entry(
    number: int | None, weights_sha256: str, recordings_sha256: str | None = None
) -> dict[str, Any]:
    """Return `{time, winner_number, weights_sha256, recordings_sha256}` of now.

    `number` is None for a model of `train`; `recordings_sha256` is the test split's `data_digest`.
    """
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    entry = {"time": now, "winner_number": number, "weights_sha256": weights_sha256}
    return entry | ({"recordings_sha256": recordings_sha256} if recordings_sha256 else {})


def access_by(bundle: Bundle, recordings_sha256: str | None = None) -> dict[str, Any]:
    """Return the entry of an access now by the weights of `bundle`."""
    number = bundle.details["provenance"].get("trial")
    return access_entry(number, bundle.details["weights_sha256"], recordings_sha256)


def add_access(log: Sequence[Entry], entry: Entry) -> list[dict[str, Any]]:
    """Return `log` with `entry`, unless it holds an access by these weights to this data."""
    is_new = not any(same_access(old, entry) for old in log)
    return [dict(one) for one in (*log, *([entry] if is_new else []))]


def first_access(log: Sequence[Entry], entry: Entry) -> dict[str, Any]:
    """Return the first access in `log` that equals `entry`."""
    return dict(next((old for old in log if same_access(old, entry)), entry))


def record_test_access(folder: Path, bundle: Bundle, entry: Entry) -> tuple[dict[str, Any], Path]:
    """Put `entry` on the record of the model in `folder`; return the first equal one, and the file.

    Raises `UserError` if the record cannot be written, or while the search is running.
    """
    folder = folder.resolve()  # a link to a search's winner is that winner
    name = bundle.details["provenance"].get("search")
    in_search = isinstance(name, str) and (folder.parent / "study.db").is_file()
    path = folder.parent / "study.db" if in_search else folder / KEPT
    try:
        if in_search:
            with exclusive_lock(folder.parent):
                log = _add_to_search(folder.parent, name, entry)
        else:
            log = add_access(_read_log(path), entry)
            write_atomically(path, (json.dumps(log, indent=1) + "\n").encode())
    except OSError as error:
        raise UserError(
            f"the test-set access cannot be recorded in '{path}' ({error.strerror}), so the test "
            "set is not evaluated: copy the folder to a writable place"
        ) from error
    return first_access(log, entry), path


def _add_to_search(folder: Path, name: str, entry: Entry) -> list[dict[str, Any]]:
    """Add the entry to the study, the summary and the report of a search; return its log."""
    summary, path = None, folder / "summary.json"
    if path.exists():
        try:
            summary = json.loads(path.read_bytes())
            summary["test_readings"]
        except _JSON_ERRORS as error:
            raise UserError(
                f"'{path}' is damaged: rerun the command of search '{name}' to write it again"
            ) from error
    study = read_study(folder / "study.db", name)
    log = add_access(study.user_attrs.get(READINGS, []), entry)
    try:
        study.set_user_attr(READINGS, log)
    except Exception as error:  # sqlalchemy, sqlite and optuna each have their own
        raise OSError(None, root_cause(error)) from error
    if summary is not None:
        write_summary(path, {**summary, "test_readings": log})
        try:
            render(folder)
        except Exception as error:  # the access is on record all the same
            logger.warning(f"report.html could not be made again ({root_cause(error)})")
    return log


def _read_log(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        log: list[dict[str, Any]] = json.loads(path.read_bytes())
        [entry["weights_sha256"] for entry in log]
    except _JSON_ERRORS as error:
        raise UserError(
            f"'{path}' is damaged: it is not a list of test-set accesses; restore it from a copy"
        ) from error
    return log
