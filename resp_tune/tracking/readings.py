"""A reading of the test side by a registered model, on record with the model's version."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from resp_tune.errors import UserError
from resp_tune.tracking.client import connect
from resp_tune.tracking.names import WEIGHTS
from resp_tune.tracking.uri import redact, root_cause

READING = "resp_tune.test_reading"


def record_reading(
    model_uri: str, tracking_uri: str, reading: Mapping[str, Any]
) -> tuple[dict[str, Any], str]:
    """Tag the versions of a model that have the reading's weights; one that is tagged stays so.

    `model_uri` is `models:/NAME@ALIAS` or `models:/NAME/VERSION`. Returns the reading that stands,
    the first of these weights, and what carries the record; raises `UserError` where it cannot be
    written.
    """
    from mlflow.exceptions import MlflowException

    name = model_uri.removeprefix("models:/").split("@")[0].split("/")[0]
    client = connect(tracking_uri)
    try:
        # By their weights, because an alias may have moved since they were fetched.
        versions = [
            version
            for version in client.search_model_versions(f"name = '{name}'", max_results=1000)
            if version.tags.get(WEIGHTS) == reading["weights_sha256"]
        ]
        for version in versions:
            if READING not in version.tags:
                text = json.dumps(dict(reading))
                client.set_model_version_tag(name, version.version, READING, text)
    except MlflowException as error:
        raise UserError(
            f"the reading of the test side cannot be recorded with '{model_uri}' in "
            f"'{redact(tracking_uri)}' ({root_cause(error, tracking_uri)}), so it is not read"
        ) from None
    if not versions:
        raise UserError(
            f"no version of '{name}' in '{redact(tracking_uri)}' says that it has these weights, "
            "so a reading of the test side cannot be recorded: give the winner/ folder of a search"
        )
    stands = _read(versions[0].tags.get(READING)) or dict(reading)
    return stands, f"version {', '.join(str(v.version) for v in versions)} of model {name}"


def _read(text: str | None) -> dict[str, Any] | None:
    try:
        value = json.loads(text or "null")
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
