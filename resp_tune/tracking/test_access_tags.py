"""Record accesses to the test set by a registered model, in tags of the model's version."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from resp_tune.errors import UserError
from resp_tune.tracking.client import connect
from resp_tune.tracking.tags import WEIGHTS
from resp_tune.tracking.uri import redact, root_cause

READING = "resp_tune.test_reading"  # `.2` and so on: with other recordings
IDENTITY = ("weights_sha256", "recordings_sha256")


def same_access(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether both are of the same weights on the same recordings.

    A hash that an older record lacks counts as equal.
    """
    both = ((one.get(key), other.get(key)) for key in IDENTITY)
    return all(a == b or a is None or b is None for a, b in both)


def record_test_access(
    model_uri: str, tracking_uri: str, access: Mapping[str, Any]
) -> tuple[dict[str, Any], str]:
    """Tag the versions of a model that have the weights of `access`; existing tags are kept.

    `model_uri` is `models:/NAME@ALIAS` or `models:/NAME/VERSION`. Returns the first access with
    these weights and recordings, and a description of what carries the record. Raises `UserError`
    if it cannot be written.
    """
    from mlflow.exceptions import MlflowException

    name = model_uri.removeprefix("models:/").split("@")[0].split("/")[0]
    client = connect(tracking_uri)
    try:
        # By weights, because an alias may have moved since the model was fetched.
        versions = [
            version
            for version in client.search_model_versions(f"name = '{name}'", max_results=1000)
            if version.tags.get(WEIGHTS) == access["weights_sha256"]
        ]
        same = [r for v in versions for r in _accesses(v.tags) if same_access(r, access)]
        first = min(same, key=lambda r: str(r.get("time")), default=dict(access))
        for version in versions:
            own = _accesses(version.tags)
            if not any(same_access(r, access) for r in own):
                tag = f"{READING}.{len(own) + 1}" if own else READING
                client.set_model_version_tag(name, version.version, tag, json.dumps(first))
    except MlflowException as error:
        raise UserError(
            f"the access to the test set cannot be recorded with '{model_uri}' in "
            f"'{redact(tracking_uri)}' ({root_cause(error, tracking_uri)}), so it does not happen"
        ) from None
    if not versions:
        raise UserError(
            f"no version of '{name}' in '{redact(tracking_uri)}' has these weights, so an access "
            "to the test set cannot be recorded: give the winner/ folder of a search"
        )
    return first, f"version {', '.join(str(v.version) for v in versions)} of model {name}"


def _accesses(tags: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the accesses recorded with one version, without unreadable tags."""
    accesses = []
    for name, text in tags.items():
        if name == READING or name.startswith(f"{READING}."):
            with suppress(ValueError, RecursionError):
                accesses.append(json.loads(text))
    return [access for access in accesses if isinstance(access, dict)]
