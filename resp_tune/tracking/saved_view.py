"""A saved view of a search's trials: best first, with columns for state, score and parameters.

MLflow's own page keeps a view in a tag of the experiment, `mlflow.sharedViewState.<key>`: JSON with
`name`, `createdAt` (ms), and `state`, which is JSON text again (mlflow 3.17, its "Views" button).
An older page that does not know the tag shows its default columns.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from resp_tune.tracking.tags import NUMBER, STATE, runs_filter

if TYPE_CHECKING:
    from mlflow import MlflowClient

_TAG = "mlflow.sharedViewState."
_MOST_COLUMNS = 12


def view_key(name: str) -> str:
    """The key of a search's view, as it stands in the page's address."""
    return f"resp_tune-{name}"


def save_view(
    client: MlflowClient,
    experiment: str,
    name: str,
    metric: str,
    mode: Literal["max", "min"],
    columns: Sequence[str],
    *,
    study_id: str | None = None,
) -> None:
    """Write the view of the search `name`, unless it is there already."""
    state = json.dumps(_state(name, metric, mode, columns, study_id))
    tag = _TAG + view_key(name)
    old = client.get_experiment(experiment).tags.get(tag)
    if old is not None and json.dumps(state) in old:
        return
    now = time.time_ns() // 1_000_000
    view = {"name": f"Search {name}", "createdAt": now, "updatedAt": now, "state": state}
    client.set_experiment_tag(experiment, tag, json.dumps(view))


def _state(
    name: str, metric: str, mode: Literal["max", "min"], columns: Sequence[str], study: str | None
) -> dict[str, object]:
    shown = [
        f"tags.`{STATE}`",
        f"metrics.`{metric}`",
        f"metrics.`val_{metric}`",
        *(f"params.`{column}`" for column in columns[:_MOST_COLUMNS]),
        "metrics.`total_seconds`",
        f"tags.`{NUMBER}`",
    ]
    return {
        "searchFilter": runs_filter(name, study, "trial"),
        "orderByKey": f"metrics.`{metric}`",
        "orderByAsc": mode == "min",
        "selectedColumns": shown,
        # Without it the page sorts them by kind and name, the state out of sight on the right.
        "columnOrder": shown,
    }
