"""For each option of a search it is decided whether it changes what a trial means."""

from __future__ import annotations

from dataclasses import fields
from types import SimpleNamespace
from typing import Any, cast

import pytest

from resp_tune.data.tasks import TASKS
from resp_tune.harness.options import SearchOptions
from resp_tune.harness.spec import trial_identity
from resp_tune.space.search_space import load_space

# Bound to a study by what is made of them: recordings, classes, fields of the space, the split.
BOUND_OTHERWISE = {"data", "task", "space", "hold_out_device", "drop_shared_patients", "test_fold"}
# They may change between two runs of one search: trials with and without them are comparable.
FREE = {
    "trials",
    "time_budget",
    "trial_timeout",
    "scheduler",
    "fold_rule",
    "stop",
    "sampler",
    "replicates",
    "ensemble",
    "gpus",
    "trials_per_gpu",
    "concurrency",
    "cpus_per_trial",
    "address",
    "wait_for_gpus",
    "name",
    "storage",
    "tracking_uri",
    "dry_run",
}


def test_an_option_is_part_of_a_trials_identity_or_named_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("resp_tune.harness.spec.data_digest", lambda *_: "")
    used = set()

    class Options:
        def __getattr__(self, name: str) -> Any:
            used.add({"order": "fold_order"}.get(name, name))
            return getattr(
                SearchOptions(folds=2, reshuffle=True, replicates=2, outer_folds=2), name
            )

    datamodule = SimpleNamespace(clips=SimpleNamespace(task=TASKS["diagnosis"]))
    data = SimpleNamespace(datamodule=datamodule, sources=(), is_resampled=False, encoders=())
    trial_identity(cast(Any, Options()), load_space("smoke.yaml"), cast(Any, data))
    assert used | BOUND_OTHERWISE | FREE == {field.name for field in fields(SearchOptions)}
    assert not used & (BOUND_OTHERWISE | FREE)
