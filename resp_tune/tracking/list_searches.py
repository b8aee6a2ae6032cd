"""The searches that an MLflow store knows, for the links to them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from resp_tune.common.choices import COMPARED_RUNS
from resp_tune.tracking.client import EXPERIMENT, connect
from resp_tune.tracking.tags import (
    KIND,
    METRIC,
    MODE,
    SEARCH,
    STATE,
    STUDY,
    conditions,
    runs_filter,
)
from resp_tune.tracking.ui_links import search_links

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run


@dataclass(frozen=True)
class SearchEntry:
    """A search as its parent run tells it; `best` holds the run ids of its best trials."""

    name: str
    state: str
    experiment_id: str
    metric: str
    mode: Literal["max", "min"]
    score: float | None
    study_id: str | None
    best: tuple[str, ...]

    def links(self, base: str) -> dict[str, str]:
        """Its pages on the server at `base`, by what they show."""
        return search_links(
            base,
            self.experiment_id,
            self.name,
            self.metric,
            self.mode,
            self.best,
            study_id=self.study_id,
        )


def list_searches(uri: str) -> list[SearchEntry]:
    """All searches of the store, newest first; raises `UserError` where it cannot be read."""
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
    metric, study = tags.get(METRIC, "macro_f1"), tags.get(STUDY)
    mode: Literal["max", "min"] = "min" if tags.get(MODE) == "min" else "max"
    finished = f"{runs_filter(tags[SEARCH], study, 'trial')} and tags.`{STATE}` = 'finished'"
    order = "ASC" if mode == "min" else "DESC"
    best = client.search_runs(
        [experiment], finished, max_results=COMPARED_RUNS, order_by=[f"metrics.`{metric}` {order}"]
    )
    return SearchEntry(
        name=tags[SEARCH],
        state=tags.get(STATE, "running"),
        experiment_id=experiment,
        metric=metric,
        mode=mode,
        score=parent.data.metrics.get(f"best_{metric}"),
        study_id=study,
        best=tuple(run.info.run_id for run in best),
    )
