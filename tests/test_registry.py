"""The winner in the registry and back, on a real sqlite store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from support.mlflow_stores import with_mlflow_store

from resp_tune.common.trial_key import TrialKey
from resp_tune.config import TrialConfig
from resp_tune.errors import UserError
from resp_tune.tracking.registry import RegisteredModel, fetch_bundle, register_winner
from resp_tune.tracking.search_run import SearchRuns
from resp_tune.tracking.tags import SearchRef
from resp_tune.training.loop import build_network
from resp_tune.training.model_bundle import load_bundle, save_bundle

NAMES = ["config.json", "weights.safetensors"]
CLASSES = ["COPD", "Healthy", "URTI & co"]


def make_bundle(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    config = TrialConfig(width=2)
    save_bundle(folder, config, CLASSES, [build_network(config, len(CLASSES))], {"task": "x"})
    (folder / "notes.pkl").write_bytes(b"not for the registry")
    return folder


@dataclass(frozen=True)
class Registered:
    uri: str
    storage: Path
    run_id: str
    bundle: Path
    model: RegisteredModel


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Registered:
    storage = tmp_path_factory.mktemp("results")
    uri, bundle = (
        f"sqlite:///{with_mlflow_store(storage)}/mlflow.db",
        make_bundle(storage / "first" / "winner", 0),
    )
    runs = SearchRuns(uri, storage, SearchRef("first", "macro_f1", "max"), params={})
    run_id = runs.log_evaluation(TrialKey(0), params={}, metrics={"test_macro_f1": 0.5}, tags={})
    runs.close("FINISHED")
    assert run_id is not None
    model = register_winner(
        uri, storage, run_id=run_id, bundle=bundle, tags={"resp_tune.search": "first"}
    )
    return Registered(uri, storage, run_id, bundle, model)


def test_the_same_weights_keep_their_version_and_others_take_the_alias(
    registered: Registered, tmp_path: Path
) -> None:
    client = MlflowClient(registered.uri, registry_uri=registered.uri)
    assert registered.model == RegisteredModel("resp_tune", 1, "models:/resp_tune/1")
    place = (registered.uri, registered.storage)
    again = register_winner(*place, run_id=registered.run_id, bundle=registered.bundle)
    assert again == registered.model
    other = register_winner(
        *place, run_id=registered.run_id, bundle=make_bundle(tmp_path / "other", 1), alias="next"
    )
    assert other.version == 2
    assert int(client.get_model_version_by_alias("resp_tune", "next").version) == 2
    version = client.get_model_version_by_alias("resp_tune", "champion")
    assert (int(version.version), version.run_id) == (1, registered.run_id)
    assert version.tags["resp_tune.search"] == "first"
    config = json.loads((registered.bundle / "config.json").read_text())
    assert version.tags["resp_tune.weights_sha256"] == config["weights_sha256"]
    back = register_winner(*place, run_id=registered.run_id, bundle=registered.bundle, alias="next")
    assert back.version == 1
    assert int(client.get_model_version_by_alias("resp_tune", "next").version) == 1
    assert client.get_run(registered.run_id).info.status == "FINISHED"


def test_fetched_is_the_bundle_and_nothing_else(registered: Registered, tmp_path: Path) -> None:
    folder = fetch_bundle("models:/resp_tune@champion", registered.uri, tmp_path / "new" / "one")
    assert sorted(file.name for file in folder.iterdir()) == NAMES
    for name in NAMES:
        assert (folder / name).read_bytes() == (registered.bundle / name).read_bytes()
    assert fetch_bundle("models:/resp_tune/1", registered.uri, folder) == folder


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("models:/resp_tune@nobody", "known: models:/resp_tune@champion"),
        ("models:/other@champion", "known: models:/resp_tune@champion"),
        ("models:/resp_tune/99", "not found"),
        ("models:/resp_tune", "not the URI of a model"),
        ("runs:/abc/winner", "not the URI of a model"),
        ("models:/../x@champion", "not the URI of a model"),
    ],
)
def test_what_is_not_there_is_refused(
    model: str, words: str, registered: Registered, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words):
        fetch_bundle(model, registered.uri, tmp_path / "into")
    assert list(tmp_path.iterdir()) == []


def test_no_store_is_refused_and_not_made(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no MLflow store"):
        fetch_bundle("models:/resp_tune@champion", f"sqlite:///{tmp_path}/a.db", tmp_path / "into")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_weights_is_refused(registered: Registered, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"needs config\.json"):
        register_winner(registered.uri, tmp_path, run_id=registered.run_id, bundle=tmp_path)


def test_others_can_use_it_with_mlflow_alone(registered: Registered, tmp_path: Path) -> None:
    """Another process, another folder, without this package on its path: the model brings it."""
    code = f"""
import sys, json, mlflow, numpy as np
sys.path = [p for p in sys.path if p != {str(Path(__file__).parents[1])!r}]
sys.meta_path = [f for f in sys.meta_path if "editable" not in repr(f)]
mlflow.set_tracking_uri({registered.uri!r})
model = mlflow.pyfunc.load_model("models:/resp_tune@champion")
import resp_tune
assert "models" in resp_tune.__file__, resp_tune.__file__
wave = np.random.default_rng(1).normal(0, .1, (2, 12_000)).astype(np.float32)
answer = model.predict(wave)
example = model.predict(model.input_example)
requirements = open(mlflow.pyfunc.get_model_dependencies("models:/resp_tune@champion")).read()
print(json.dumps([list(answer.columns), answer.values.tolist(), list(example.shape),
                  str(model.metadata.signature), requirements]))
"""
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "MLFLOW_LOGGING_LEVEL": "ERROR", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    columns, values, shape, signature, requirements = json.loads(ran.stdout.splitlines()[-1])
    assert columns == CLASSES
    assert shape == [1, len(CLASSES)]
    assert "float32" in signature
    assert "URTI & co" in signature
    assert f"torch=={torch.__version__.partition('+')[0]}" in requirements
    wave = np.random.default_rng(1).normal(0, 0.1, (2, 12_000)).astype(np.float32)
    bundle = load_bundle(registered.bundle)
    expected = [bundle.predict_waveform(torch.from_numpy(row)) for row in wave]
    np.testing.assert_allclose(values, expected, atol=1e-5)
    assert list(tmp_path.iterdir()) == []


def test_the_logged_model_is_plain_code_and_lies_beside_the_store(registered: Registered) -> None:
    model = next((registered.storage / "mlartifacts").rglob("MLmodel")).parent
    names = {path.name for path in model.rglob("*") if path.is_file()}
    assert {"served_model.py", "config.json", "weights.safetensors", "input_example.json"} <= names
    assert not [name for name in names if name.endswith((".pkl", ".pickle"))]
