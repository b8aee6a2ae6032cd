"""Readings of a test side after the search: on record before the side is opened, or not read.

A bundle in its search's folder is on the search's record: the study, and `summary.json` after it.
One that stands alone (moved, or made by `train`) keeps `test_readings.json` beside its weights.
The same weights on recordings that have changed since are another reading.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from resp_tune.common.paths import write_atomically
from resp_tune.errors import UserError
from resp_tune.harness.lock import exclusive_lock
from resp_tune.harness.result_files import write_summary
from resp_tune.reporting.report_page import render
from resp_tune.study.study import READINGS, read_study
from resp_tune.tracking.test_access_tags import same_access
from resp_tune.tracking.uri import root_cause
from resp_tune.training.model_bundle import Bundle

KEPT = "test_readings.json"


def access_entry(
    number: int | None, weights_sha256: str, recordings_sha256: str | None = None
) -> dict[str, Any]:
    """`{time, winner_number, weights_sha256, recordings_sha256}` of now.

    No number for a bundle of `train`; `recordings_sha256` is the `data_digest` of the test side.
    """
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    known = {"time": now, "winner_number": number, "weights_sha256": weights_sha256}
    return known | ({"recordings_sha256": recordings_sha256} if recordings_sha256 else {})


def add_access(
    known: Sequence[Mapping[str, Any]], reading: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """`known` with `reading` added, unless the same weights read the same recordings before."""
    new = not any(same_access(old, reading) for old in known)
    return [dict(one) for one in (*known, *([reading] if new else []))]


def access_by(bundle: Bundle, recordings_sha256: str | None = None) -> dict[str, Any]:
    """The reading of now by the weights of `bundle`."""
    details = bundle.details
    number = details["provenance"].get("trial")
    return access_entry(number, details["weights_sha256"], recordings_sha256)


def first_access(known: Sequence[Mapping[str, Any]], reading: Mapping[str, Any]) -> dict[str, Any]:
    """The same reading among `known`: the first one stands."""
    return dict(next((old for old in known if same_access(old, reading)), reading))


def record_test_access(
    folder: Path, bundle: Bundle, reading: Mapping[str, Any]
) -> tuple[dict[str, Any], Path]:
    """Put the reading on record, unless the same one is; the one that stands, and where.

    Raises `UserError` where that cannot be done, or where the search is being run.
    """
    folder = folder.resolve()  # a link to a search's winner is that winner
    name = bundle.details["provenance"].get("search")
    if isinstance(name, str) and (folder.parent / "study.db").is_file():
        path = folder.parent / "study.db"
    else:
        name, path = None, folder / KEPT
    try:
        if name is None:
            known = add_access(_kept(path), reading)
            write_atomically(path, (json.dumps(known, indent=1) + "\n").encode())
        else:
            with exclusive_lock(folder.parent):
                known = _into_search(folder.parent, name, reading)
    except OSError as error:
        raise UserError(
            f"the reading of the test side cannot be recorded in '{path}' ({error.strerror}), so "
            "it is not read: copy the folder to where it can be written"
        ) from error
    return first_access(known, reading), path


def _into_search(folder: Path, name: str, reading: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The search's readings with this one among them."""
    summary, path = None, folder / "summary.json"
    if path.exists():
        try:
            summary = json.loads(path.read_bytes())
            summary["test_readings"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise UserError(
                f"'{path}' is damaged: the command of search '{name}', typed again, makes it anew"
            ) from error
    study = read_study(folder / "study.db", name)
    known = add_access(study.user_attrs.get(READINGS, []), reading)
    try:
        study.set_user_attr(READINGS, known)
    except Exception as error:  # sqlalchemy, sqlite and optuna each have their own
        raise OSError(None, root_cause(error)) from error
    if summary is not None:
        write_summary(path, {**summary, "test_readings": known})
        render(folder)
    return known


def _kept(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        readings: list[dict[str, Any]] = json.loads(path.read_bytes())
        [reading["weights_sha256"] for reading in readings]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(
            f"'{path}' is damaged: it is not a list of readings; restore it from a copy"
        ) from error
    return readings
