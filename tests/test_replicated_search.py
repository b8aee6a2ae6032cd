"""A search with `--replicates` from end to end, repeated and damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from support.inline import search_inline
from support.searches import Outcome, study, summary

from resp_tune.data.synthetic.settings import SynthSettings
from resp_tune.data.synthetic.write import make_synthetic
from resp_tune.training.model_bundle import load_bundle

ARGS = ("--space", "search_spaces/smoke.yaml", "--epochs", "1", "--gpus", "0", "--trials", "2")
ARGS += ("--replicates", "2", "--name", "twice")
TEST = ("macro_f1", "balanced_accuracy", "accuracy", "log_loss")


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("results")


@pytest.fixture(scope="module")
def args(storage: Path) -> tuple[str, ...]:
    """The arguments of a search of a small set: half of its time would go into the baselines."""
    data = storage.parent / "data"
    make_synthetic(data, SynthSettings(40, 5.0, 0, "none"))
    return (*ARGS, "--data", str(data))


@pytest.fixture(scope="module")
def finished(storage: Path, args: tuple[str, ...]) -> Outcome:
    outcome = search_inline(storage, *args)
    assert outcome.code == 0, outcome.err
    assert "Traceback" not in outcome.err
    return outcome


def replicates(storage: Path, name: str = "twice") -> pd.DataFrame:
    return pd.read_csv(storage / name / "replicates.csv")


def runs(storage: Path, kind: str) -> list[Any]:
    client = mlflow.MlflowClient(f"sqlite:///{storage / 'mlflow.db'}")
    return list(client.search_runs(["1"], f"tags.`resp_tune.kind` = '{kind}'"))


def test_the_winner_is_chosen_by_its_seeds(finished: Outcome, storage: Path) -> None:
    table, told = replicates(storage), summary(storage, "twice")
    assert list(zip(table["number"], table["index"], strict=True)) == [
        (0, 1),
        (0, 2),
        (1, 1),
        (1, 2),
    ]
    assert set(table["state"]) == {"finished"}
    assert len(set(table["seed"])) == 4
    bounds = {}
    for number, own in table.groupby("number"):
        scores = own["score"].to_numpy()
        bounds[number] = scores.mean() - scores.std(ddof=1) / np.sqrt(2)
    rows = {row["number"]: row for row in told["candidates"]}
    assert {n: row["bound"] for n, row in rows.items()} == pytest.approx(bounds)
    winner = told["winner"]
    assert bounds[winner["number"]] == pytest.approx(max(bounds.values()))
    own = table[table["number"] == winner["number"]]
    assert winner["seeds"] == winner["replicates"]["seeds"] == list(own["seed"])
    assert winner["validation"]["macro_f1"] == pytest.approx(own["score"].mean())
    assert len(study(storage, "twice").get_trials()) == 2
    assert told["trials"]["finished"] == 2
    price = winner["price_of_searching"]
    best = max(row["search_score"] for row in told["candidates"])
    assert price["best_validation"] == pytest.approx(best)
    seeds = winner["test"]["by_seed"]["macro_f1"]["mean"]  # like the search's: one network each
    assert price["difference"] == pytest.approx(best - seeds)
    assert "the price of searching is" in finished.out
    assert f"replicate {winner['number']}/2 finished" in finished.err


def test_the_bundle_holds_every_seed(finished: Outcome, storage: Path) -> None:
    folder, told = storage / "twice", summary(storage, "twice")["winner"]
    bundle = load_bundle(folder / "winner")
    assert len(bundle.networks) == 2
    assert bundle.details["provenance"]["seeds"] == told["seeds"]
    own = folder / "trials" / str(told["number"]) / "replicates"
    parts = [pd.read_csv(own / str(n) / "predictions.csv") for n in (1, 2)]
    columns = [c for c in parts[0].columns if c.startswith("p_")]
    mean = np.mean([part[columns].to_numpy() for part in parts], axis=0)
    both = pd.read_csv(folder / "winner" / "predictions.csv")
    validation = both[both["side"] == "validation"]
    assert list(both.columns) == list(parts[0].columns)
    np.testing.assert_allclose(validation[columns].to_numpy(), mean, atol=2e-6)
    test = told["test"]
    assert all(len(test["by_seed"][name]["values"]) == 2 for name in TEST)
    assert test["by_seed"]["macro_f1"]["sd"] == pytest.approx(
        np.std(test["by_seed"]["macro_f1"]["values"], ddof=1)
    )
    assert set(test["against"]) == {"device", "all", "audio_linear"}
    assert {"per_class", "by_patient", "by_device", "controlled"} <= test.keys()


def test_mlflow_tells_replicates_from_trials(finished: Outcome, storage: Path) -> None:
    found = {run.info.run_id: run for run in runs(storage, "replicate")}
    assert len(found) == 4
    for row in replicates(storage).itertuples():
        run = found[row.mlflow_run_id]
        assert run.info.status == "FINISHED"
        assert run.data.tags["resp_tune.trial_number"] == str(row.number)
        assert run.data.metrics["macro_f1"] == pytest.approx(row.score)
        assert run.data.params["seed"] == str(row.seed)
    assert len(runs(storage, "trial")) == 2


def test_the_same_command_repeats_nothing_and_repairs_a_checkpoint(
    finished: Outcome, storage: Path, args: tuple[str, ...]
) -> None:
    folder, before = storage / "twice", replicates(storage)
    told = summary(storage, "twice")
    winner = told["winner"]["number"]
    path = folder / "trials" / str(winner) / "replicates" / "1" / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:1000])
    outcome = search_inline(storage, *args)
    assert outcome.code == 0, outcome.err
    assert f"trial {winner}/1 is trained again" in outcome.err
    assert replicates(storage).equals(before)
    again = summary(storage, "twice")
    assert again["winner"]["test"]["macro_f1"] == told["winner"]["test"]["macro_f1"]
    assert again["test_readings"] == told["test_readings"], "the same bits: no second reading"
    assert len(runs(storage, "replicate")) == 4
