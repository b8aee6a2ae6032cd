"""Find out before a search whether the tracking store will take its winner; write nothing."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from resp_tune.common.deadline import finishes_within
from resp_tune.common.paths import can_write
from resp_tune.tracking.mlflow_internals import request
from resp_tune.tracking.moved_store import local_folder, moved_to, recorded_location
from resp_tune.tracking.store_probe import EXPERIMENT, PROBE_SECONDS
from resp_tune.tracking.uri import is_server

REGISTERED = "resp_tune"
_REQUEST_SECONDS = 3.0
_NO_VERSION = "999999999"
# What MLflow needs for artifacts at such an address.
_MODULES = {
    "s3": "boto3",
    "gs": "google.cloud.storage",
    "wasbs": "azure.storage.blob",
    "abfss": "azure.storage.filedatalake",
    "hdfs": "pyarrow",
    "sftp": "pysftp",
}


def tracking_notes(uri: str) -> Iterator[str]:
    """Yield what to know of a store before a search: that it was moved, that it takes no model.

    Takes a few seconds at most; a server that does not answer in time yields nothing.
    """
    location = recorded_location(uri)
    if location is not None and (new := moved_to(uri, location)) is not None:
        yield f"the MLflow store was moved: its models were kept in {location} and are now in {new}"
        location = new.as_uri()
    if (reason := _refusal(uri, location)) is not None:
        yield f"the winner will not be registered: {reason}. All other results are not affected"


def _refusal(uri: str, location: str | None) -> str | None:
    if not is_server(uri):
        return None if location is None else _unwritable(location)
    found: list[str | None] = []
    with suppress(Exception):  # whether a server can be used at all is the probe's question
        finishes_within(PROBE_SECONDS, lambda: found.append(_refusal_of_server(uri)))
    return found[0] if found else None


def _refusal_of_server(uri: str) -> str | None:
    """Return why a server would not take a model, None if nothing speaks against it."""
    query = {"max_results": 1, "filter": f"name = '{EXPERIMENT}'"}
    found = _answer(uri, "experiments/search", query)[1].get("experiments")
    if not found:  # the experiment will be made beside the default one
        default = _answer(uri, "experiments/get", {"experiment_id": "0"}, "GET")[1]
        found = [default.get("experiment", {})]
    search = {"experiment_ids": [found[0].get("experiment_id", "0")], "max_results": 1}
    status, _ = _answer(uri, "logged-models/search", search)
    if status in (404, 405, 501):
        return "this server has no logged models, as MLflow before version 3 and Azure ML"
    if status in (401, 403):
        return f"this server refuses logged models to this user ({status})"
    status, _ = _answer(uri, "registered-models/search", {"max_results": 1}, "GET")
    if status in (401, 403, 404, 405, 501):
        return f"this server refuses its model registry to this user ({status})"
    status, _ = _answer(uri, "registered-models/get", {"name": REGISTERED}, "GET")
    if status == 200:
        # Refused for the missing right, or for the missing version; it writes nothing.
        body = {"name": REGISTERED, "version": _NO_VERSION, "description": ""}
        status, _ = _answer(uri, "model-versions/update", body, "PATCH")
        if status in (401, 403):
            return f"this user may not add versions to the model '{REGISTERED}' ({status})"
    location = found[0].get("artifact_location")
    return None if location is None else _unwritable(location)


def _answer(
    uri: str, path: str, content: dict[str, Any], method: str = "POST"
) -> tuple[int, dict[str, Any]]:
    answer = request(uri, path, content, _REQUEST_SECONDS, method)
    try:
        return answer.status_code, dict(answer.json())
    except ValueError:
        return answer.status_code, {}


def _unwritable(location: str) -> str | None:
    """Return why this machine cannot write artifacts to `location`, None if it may."""
    folder = local_folder(location)
    if folder is None:
        module = _MODULES.get(urlsplit(location).scheme)
        if module is None or _is_installed(module):
            return None
        return f"artifacts at '{location}' need the module {module}, which is not installed"
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not place.is_dir() or not can_write(place):
        return f"its artifacts go to '{folder}', and this machine cannot write to '{place}'"
    return None


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # a package around it
        return False
