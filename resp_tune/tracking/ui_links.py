"""The searches in an MLflow store, the links to its pages of each, and the view that one opens.

MLflow opens every experiment on its page for language models, which shows no runs. Only the address
changes that, so users get these links instead of a bare port.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

from resp_tune.common.choices import COMPARED_RUNS, MLFLOW_PORT
from resp_tune.tracking.client import connect
from resp_tune.tracking.mlflow_internals import VIEW_TAG
from resp_tune.tracking.store_probe import EXPERIMENT
from resp_tune.tracking.tags import SearchRef, Tag, conditions
from resp_tune.tracking.uri import is_server, public_base

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

LOCAL_UI = f"http://127.0.0.1:{MLFLOW_PORT}"
_MOST_COLUMNS = 12


def search_links(
    uri_or_base: str, experiment_id: str, search: SearchRef, best_run_ids: Sequence[str]
) -> dict[str, str]:
    """Return links by the keys of `common.choices.LINK_TEXTS`.

    `compare`, the parallel coordinates of `best_run_ids`, needs at least two. The links of a
    database lead to the server that `bash scripts/ui` starts on this machine.
    """
    base = public_base(uri_or_base) if is_server(uri_or_base) else LOCAL_UI
    page = f"{base}/#/experiments/{quote(experiment_id)}/runs?"
    face = {"workflowType": "machine_learning"}
    trials = {
        **face,
        "searchFilter": search.runs_filter("trial"),
        "orderByKey": f"metrics.`{search.metric}`",
        "orderByAsc": "true" if search.mode == "min" else "false",
    }
    links = {
        "trials": page + _query(trials),
        "search": page + _query({**face, "searchFilter": search.runs_filter()}),
        "view": page + _query({**face, "viewStateShareKey": _view_key(search)}),
        "charts": page + _query({**trials, "compareRunsMode": "CHART"}),
    }
    if len(best_run_ids) > 1:
        chosen = {
            "runs": json.dumps(list(best_run_ids), separators=(",", ":")),
            "experiments": json.dumps([experiment_id]),
        }
        links["compare"] = f"{base}/#/compare-runs?" + _query({**chosen, **face})
    return links


def _query(values: dict[str, str]) -> str:
    return urlencode(values, quote_via=quote, safe="")


def save_view(
    client: MlflowClient, experiment_id: str, search: SearchRef, columns: Sequence[str]
) -> None:
    """Save the view of a search's trials, best first, with `columns`, unless it is there already.

    The columns are the state, the score, the parameters `columns` and the time.
    """
    shown = [
        f"tags.`{Tag.STATE}`",
        f"metrics.`{search.metric}`",
        f"metrics.`val_{search.metric}`",
        *(f"params.`{column}`" for column in columns[:_MOST_COLUMNS]),
        "metrics.`total_seconds`",
        f"tags.`{Tag.NUMBER}`",
    ]
    state = json.dumps(
        {
            "searchFilter": search.runs_filter("trial"),
            "orderByKey": f"metrics.`{search.metric}`",
            "orderByAsc": search.mode == "min",
            "selectedColumns": shown,
            # Without it the page sorts columns by kind and name, with the state out of sight.
            "columnOrder": shown,
        }
    )
    tag = VIEW_TAG + _view_key(search)
    old = client.get_experiment(experiment_id).tags.get(tag)
    if old is not None and json.dumps(state) in old:
        return
    now = time.time_ns() // 1_000_000
    fold = "" if search.outer_fold is None else f", outer fold {search.outer_fold}"
    view = {
        "name": f"Search {search.name}{fold}",
        "createdAt": now,
        "updatedAt": now,
        "state": state,
    }
    client.set_experiment_tag(experiment_id, tag, json.dumps(view))


def _view_key(search: SearchRef) -> str:
    fold = "" if search.outer_fold is None else f"-outer-{search.outer_fold}"
    return f"resp_tune-{search.name}{fold}"


@dataclass(frozen=True)
class SearchEntry:
    """A search as its parent run describes it, with the run ids of its best trials."""

    search: SearchRef
    state: str
    experiment_id: str
    score: float | None
    best: tuple[str, ...]

    def links(self, base: str) -> dict[str, str]:
        """Return the links to its pages on the server at `base`."""
        return search_links(base, self.experiment_id, self.search, self.best)


def list_searches(uri: str) -> list[SearchEntry]:
    """Return all searches of the store, newest first; `UserError` if it cannot be read."""
    client = connect(uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None:
        return []
    parents = client.search_runs(
        [experiment.experiment_id],
        conditions({Tag.KIND: "search"}),
        order_by=["attributes.start_time DESC"],
    )
    return [_entry(client, parent) for parent in parents]


def _entry(client: MlflowClient, parent: Run) -> SearchEntry:
    tags, experiment = parent.data.tags, parent.info.experiment_id
    metric, mode = tags.get(Tag.METRIC, "macro_f1"), tags.get(Tag.MODE)
    fold = tags.get(Tag.OUTER_FOLD, "")
    search = SearchRef(
        tags[Tag.SEARCH],
        metric,
        "min" if mode == "min" else "max",
        tags.get(Tag.STUDY),
        int(fold) if fold.isdecimal() else None,
    )
    best = client.search_runs(
        [experiment],
        f"{search.runs_filter('trial')} and tags.`{Tag.STATE}` = 'finished'",
        max_results=COMPARED_RUNS,
        order_by=[f"metrics.`{metric}` {'ASC' if mode == 'min' else 'DESC'}"],
    )
    return SearchEntry(
        search=search,
        state=tags.get(Tag.STATE, "running"),
        experiment_id=experiment,
        score=parent.data.metrics.get(f"best_{metric}"),
        best=tuple(run.info.run_id for run in best),
    )
