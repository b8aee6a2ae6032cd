"""The MLflow run of a search, the parent of its trials; that of a nested search has child searches.

Whatever is written again is written to the run that the tags of the search find.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resp_tune.common.fault_points import fault_point
from resp_tune.errors import UserError
from resp_tune.tracking.client import connect, experiment_id
from resp_tune.tracking.tags import RUNNING, ParentStatus, SearchRef, Tag, origin
from resp_tune.tracking.trial_runs import write
from resp_tune.tracking.uri import redact, root_cause

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

log = logging.getLogger(__name__)

_STATES = {"FINISHED": "finished", "FAILED": "failed", "KILLED": "interrupted"}


def search_runs(client: MlflowClient, experiment: str, search: SearchRef) -> Iterator[Run]:
    """Yield the runs of a search, its own among them, oldest first."""
    order = ["attributes.start_time ASC"]
    token: str | None = ""
    while token is not None:
        page = client.search_runs(
            [experiment],
            search.runs_filter(),
            max_results=1000,
            order_by=order,
            page_token=token or None,
        )
        yield from page
        token = page.token or None


def open_search_run(
    client: MlflowClient,
    experiment: str,
    search: SearchRef,
    known_runs: Sequence[Run],
    params: Mapping[str, Any],
) -> Run:
    """Find a search's own run in `known_runs`, or create it, and set it to running."""
    parent = next((run for run in known_runs if run.data.tags.get(Tag.KIND) == "search"), None)
    own = {**origin(), **search.tags, Tag.KIND: "search", Tag.STATE: RUNNING}
    own |= {Tag.METRIC: search.metric, Tag.MODE: search.mode}
    name = search.name
    if search.outer_fold is not None:
        name += f"-outer-{search.outer_fold}"
    if search.parent_run is not None:
        own[Tag.PARENT] = search.parent_run
    if parent is None:
        parent = client.create_run(experiment, run_name=name, tags=own)
    elif parent.info.status != "RUNNING":
        client.update_run(parent.info.run_id, status="RUNNING")
    known = parent.data.params
    # MLflow cannot change a parameter; a search that was extended has the new value in a tag.
    changed = {
        f"resp_tune.{key}": str(value)
        for key, value in params.items()
        if known.get(key, str(value)) != str(value)
    }
    new = {key: value for key, value in params.items() if key not in known}
    write(client, parent.info.run_id, params=new, tags={**own, **changed})
    fault_point("mlflow-search-run")
    return parent


def end_search_run(client: MlflowClient, run_id: str, status: ParentStatus, now: int) -> None:
    """End a search's own run; `now` is in ms."""
    client.set_tag(run_id, Tag.STATE, _STATES[status])
    client.set_terminated(run_id, status=status, end_time=now)


@contextmanager
def nested_run(
    uri: str, storage: Path, search: SearchRef, params: Mapping[str, Any]
) -> Iterator[str]:
    """Find or create the run of a nested search, and yield its id.

    It is the run that its last search then continues and ends; if an error passes first, it ends
    here. Raises `UserError` if the store cannot be written to.
    """
    from mlflow.exceptions import MlflowException

    client = connect(uri)
    try:
        experiment = experiment_id(client, uri, storage)
        known = list(search_runs(client, experiment, search))
        run_id = open_search_run(client, experiment, search, known, params).info.run_id
    except MlflowException as error:
        raise UserError(
            f"the MLflow store '{redact(uri)}' cannot be written to "
            f"({root_cause(error, uri)}): give another --tracking-uri"
        ) from None
    try:
        yield run_id
    except BaseException as error:
        status: ParentStatus = "KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED"
        try:
            end_search_run(client, run_id, status, time.time_ns() // 1_000_000)
        except MlflowException as outage:
            reason = root_cause(outage, uri)
            log.warning(f"the end of the search is not in MLflow ({reason}): a rerun writes it")
        raise
