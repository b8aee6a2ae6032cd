"""A reading of the test side by a registered model, on record with the model's version."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from resp_tune.errors import UserError
from resp_tune.tracking.client import connect
from resp_tune.tracking.tags import WEIGHTS
from resp_tune.tracking.uri import redact, root_cause

READING = "resp_tune.test_reading"  # the first one; `.2` and so on are of changed recordings
OF = ("weights_sha256", "recordings_sha256")  # what makes a reading another one


def same_reading(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether both are of the same weights on the same recordings.

    One of before recordings were noted is taken for one of the same: nobody can say.
    """
    both = ((one.get(key), other.get(key)) for key in OF)
    return all(a == b or a is None or b is None for a, b in both)


def record_reading(
    model_uri: str, tracking_uri: str, reading: Mapping[str, Any]
) -> tuple[dict[str, Any], str]:
    """Tag the versions of a model that have the reading's weights; what is tagged stays so.

    `model_uri` is `models:/NAME@ALIAS` or `models:/NAME/VERSION`. Returns the reading that stands,
    the first of these weights on these recordings, and what carries the record; raises `UserError`
    where it cannot be written.
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
        known = [r for v in versions for r in _readings(v.tags) if same_reading(r, reading)]
        stands = min(known, key=lambda r: str(r.get("time")), default=dict(reading))
        for version in versions:
            own = _readings(version.tags)
            if not any(same_reading(r, reading) for r in own):
                tag = f"{READING}.{len(own) + 1}" if own else READING
                client.set_model_version_tag(name, version.version, tag, json.dumps(stands))
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
    return stands, f"version {', '.join(str(v.version) for v in versions)} of model {name}"


def _readings(tags: Mapping[str, str]) -> list[dict[str, Any]]:
    """The readings on record with one version; a tag that nobody can read holds none."""
    found = []
    for name, text in tags.items():
        if name == READING or name.startswith(f"{READING}."):
            with suppress(ValueError, RecursionError):
                found.append(json.loads(text))
    return [reading for reading in found if isinstance(reading, dict)]
