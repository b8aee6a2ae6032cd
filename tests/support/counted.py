"""What a finished search must have in each place that keeps its trials: each of them, once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import pytest
from optuna.trial import TrialState

from support.searches import files_below, study, summary, trials

_REPLICATE = "resp_tune.replicate."


def check_counted_once(storage: Path, name: str, wanted: int, epochs: int) -> None:
    """`name`, alone in `storage`, has finished `wanted` trials and two replicates of the best four.

    For searches whose scheduler stops none.
    """
    told = study(storage, name).get_trials()
    assert [t.number for t in told] == list(range(wanted))
    assert {t.state for t in told} == {TrialState.COMPLETE}
    each = list(range(1, epochs + 1))
    assert [sorted(t.intermediate_values) for t in told] == [each] * wanted
    table = trials(storage, name)
    assert list(table["number"]) == list(range(wanted))
    assert list(table["score"]) == pytest.approx([t.value for t in told])
    found = summary(storage, name)
    assert found["trials"] == {"finished": wanted, "pruned": 0, "diverged": 0, "failed": 0}
    assert len({r["weights_sha256"] for r in found["test_readings"]}) == 1
    assert len(found["test_readings"]) == 1, "the same weights are one reading"

    replicates = pd.read_csv(storage / name / "replicates.csv")
    assert len(replicates) == 2 * min(4, wanted)
    assert set(replicates["state"]) == {"finished"}
    assert set(replicates["epochs"]) == {epochs}

    client = mlflow.MlflowClient(f"sqlite:///{storage / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("resp_tune")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    kinds = [r.data.tags["resp_tune.kind"] for r in runs]
    assert {k: kinds.count(k) for k in kinds} == {
        "search": 1, "trial": wanted, "replicate": 2 * min(4, wanted), "evaluation": 1,
    }  # fmt: skip
    assert {r.info.status for r in runs} == {"FINISHED"}
    by_number = {r.data.tags["resp_tune.trial_number"]: r for r in runs
                 if r.data.tags["resp_tune.kind"] == "trial"}  # fmt: skip
    assert [by_number[str(n)].info.run_id for n in table["number"]] == list(table["mlflow_run_id"])
    for run in runs:
        if run.data.tags["resp_tune.kind"] not in ("trial", "replicate"):
            continue
        steps = [m.step for m in client.get_metric_history(run.info.run_id, "val_loss")]
        assert sorted(steps) == each, "each epoch once"
    versions = client.search_model_versions("name = 'resp_tune'")
    assert len(versions) == 1
    assert str(found["mlflow"]["version"]) == str(versions[0].version)
    assert not [path for path in files_below(storage) if ".part" in path]


def ended_runs(storage: Path, name: str) -> dict[str, Any]:
    """Return the trials and replicates that have ended as the study has them, by number or key."""
    if not (storage / name / "study.db").exists():
        return {}
    opened = study(storage, name)
    ended = {
        str(t.number): (t.params, t.value, t.user_attrs["seed"], t.intermediate_values)
        for t in opened.get_trials()
        if t.state == TrialState.COMPLETE
    }
    attributes = {k: v for k, v in opened.user_attrs.items() if k.startswith(_REPLICATE)}
    names = [k for k, v in attributes.items() if isinstance(v, dict) and v["state"] == "finished"]
    replicates = {k: v for k, v in attributes.items() if k.startswith(tuple(names))}
    return {**ended, **replicates}
