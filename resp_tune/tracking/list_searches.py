"""List the searches in an MLflow store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from resp_tune.common.choices import COMPARED_RUNS
from resp_tune.tracking.client import EXPERIMENT, connect
from resp_tune.tracking.tags import (
    KIND,
    METRIC,
    MODE,
    SEARCH,
    STATE,
    STUDY,
    SearchRef,
    conditions,
)
from resp_tune.tracking.ui_links import search_links

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


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
        conditions({KIND: "search"}),
        order_by=["attributes.start_time DESC"],
    )
    return [_entry(client, parent) for parent in parents]


def _entry(client: MlflowClient, parent: Run) -> SearchEntry:
    tags, experiment = parent.data.tags, parent.info.experiment_id
    metric, mode = tags.get(METRIC, "macro_f1"), tags.get(MODE)
    search = SearchRef(tags[SEARCH], metric, "min" if mode == "min" else "max", tags.get(STUDY))
    best = client.search_runs(
        [experiment],
        f"{search.runs_filter('trial')} and tags.`{STATE}` = 'finished'",
        max_results=COMPARED_RUNS,
        order_by=[f"metrics.`{metric}` {'ASC' if mode == 'min' else 'DESC'}"],
    )
    return SearchEntry(
        search=search,
        state=tags.get(STATE, "running"),
        experiment_id=experiment,
        score=parent.data.metrics.get(f"best_{metric}"),
        best=tuple(run.info.run_id for run in best),
    )
