"""Addresses of MLflow pages that show a search as a person wants to see it.

MLflow opens every experiment on its page for language models, without runs; only the address
decides otherwise, so these are given instead of a bare port.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Literal
from urllib.parse import quote, urlencode

from resp_tune.common.choices import MLFLOW_PORT
from resp_tune.tracking.saved_view import view_key
from resp_tune.tracking.tags import runs_filter
from resp_tune.tracking.uri import is_server, public_base

LOCAL_UI = f"http://127.0.0.1:{MLFLOW_PORT}"


def search_links(
    uri_or_base: str,
    experiment_id: str,
    name: str,
    metric: str,
    mode: Literal["max", "min"],
    best_run_ids: Sequence[str],
    *,
    study_id: str | None = None,
) -> dict[str, str]:
    """Links by what they show.

    `trials`: the trials, best first. `search`: the parent run, with all it tried nested below.
    `view`: the trials through the search's saved view, with columns for state, score and
    parameters. `charts`: curves of the trials. `compare` (only for two runs or more): parallel
    coordinates of `best_run_ids`.

    A database has no pages of its own: its links lead to the server that `bash scripts/ui` starts
    on port 5000 of this machine.
    """
    base = public_base(uri_or_base) if is_server(uri_or_base) else LOCAL_UI
    runs = f"{base}/#/experiments/{quote(experiment_id)}/runs?"
    face = {"workflowType": "machine_learning"}
    trials = {
        **face,
        "searchFilter": runs_filter(name, study_id, "trial"),
        "orderByKey": f"metrics.`{metric}`",
        "orderByAsc": "true" if mode == "min" else "false",
    }
    links = {
        "trials": runs + _query(trials),
        "search": runs + _query({**face, "searchFilter": runs_filter(name, study_id)}),
        "view": runs + _query({**face, "viewStateShareKey": view_key(name)}),
        "charts": runs + _query({**trials, "compareRunsMode": "CHART"}),
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
