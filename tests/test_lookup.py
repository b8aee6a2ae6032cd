"""A trial's run, read back from MLflow."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.mlflow_stores import with_mlflow_store
from support.read_only import mounted_read_only

from resp_tune.common.trial_key import TrialKey
from resp_tune.config import TrialConfig
from resp_tune.data.split_spec import SplitSpec
from resp_tune.errors import UserError
from resp_tune.tracking.load_trial import load_trial_run
from resp_tune.tracking.search_run import SearchRuns
from resp_tune.tracking.tags import SearchRef


def test_a_config_comes_back_as_it_was(tmp_path: Path) -> None:
    uri = f"sqlite:///{with_mlflow_store(tmp_path)}/mlflow.db"
    config = TrialConfig().replace({"lr": 1e-5, "weight_decay": 1e-6, "f_max": 1500.0, "seed": 7})
    runs = SearchRuns(
        uri,
        tmp_path,
        SearchRef("first", "macro_f1", "max"),
        params={
            "task": "diagnosis",
            "task_classes": '{"sick":["COPD"]}',
            "split_seed": 3,
            "folds": 2,
            "protocol": "official",
            "hold_out_device": None,
            "drop_shared_patients": True,
            "split_sha256": "ab12",
            "data": "/a folder: of mine, [copy]",  # is no YAML
        },
    )
    fields = {k: v for k, v in config.as_dict().items() if k != "seed"}
    tags = {"resp_tune.threads": "2", "resp_tune.device": "cpu (logical GPU)"}
    runs.trials.start_trial(TrialKey(0), params=fields, seed=7, tags=tags)
    run_id = runs.run_ids()[TrialKey(0)]
    runs.close("FINISHED")
    found = load_trial_run(uri, run_id)
    assert TrialConfig().replace(found.config) == config
    assert (found.task, found.task_classes) == ("diagnosis", {"sick": ["COPD"]})
    assert found.split_spec == SplitSpec(
        "official", folds=2, split_seed=3, drop_shared_patients=True
    )
    assert (found.split_sha256, found.threads, found.on_cpu) == ("ab12", 2, True)
    with pytest.raises(UserError, match="not the run of a trial"):
        load_trial_run(uri, runs.parent_run_id)
    with pytest.raises(UserError, match="run id"):
        load_trial_run(uri, "f" * 32)
    with mounted_read_only(tmp_path):
        assert load_trial_run(uri, run_id) == found
