"""The winner in the registry and back, on a real sqlite store."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import mlflow
import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from support.bundles import save_networks
from support.mlflow_stores import with_mlflow_store
from support.read_only import mounted_read_only

from resp_tune.common.trial_key import TrialKey
from resp_tune.config import TrialConfig
from resp_tune.errors import RunError, UserError
from resp_tune.tracking import model_files, registry
from resp_tune.tracking.moved_store import local_folder, moved_to, readable
from resp_tune.tracking.registry import (
    RegisteredModel,
    fetch_bundle,
    record_test_access,
    register_winner,
)
from resp_tune.tracking.search_run import SearchRuns
from resp_tune.tracking.tags import SearchRef
from resp_tune.tracking.ui_links import SearchEntry, list_searches
from resp_tune.training.model_bundle import load_bundle
from resp_tune.training.networks.network_registry import build_network

NAMES = ["config.json", "weights.safetensors"]
CLASSES = ["COPD", "Healthy", "URTI & co"]


def make_bundle(folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    config = TrialConfig(width=2)
    save_networks(folder, config, CLASSES, [build_network(config, len(CLASSES))], {"task": "x"})
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


@dataclass(frozen=True)
class Moved:
    """A copy of the registered results elsewhere, while `old` is not there."""

    old: Path
    new: Path

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.new}/mlflow.db"

    def client(self) -> MlflowClient:
        return MlflowClient(self.uri, registry_uri=self.uri)

    def register(self, bundle: Path) -> RegisteredModel:
        run_id = self.client().get_model_version("resp_tune", "1").run_id
        return register_winner(self.uri, self.new, run_id=str(run_id), bundle=bundle)


@pytest.fixture
def moved(registered: Registered, tmp_path: Path) -> Iterator[Moved]:
    aside = registered.storage.rename(registered.storage.with_name("aside"))
    new = tmp_path / "a new & other place"
    shutil.copytree(aside, new)
    yield Moved(registered.storage, new)
    shutil.rmtree(registered.storage, ignore_errors=True)
    aside.rename(registered.storage)


def fetched(moved: Moved, model: str = "models:/resp_tune@champion") -> bytes:
    folder = fetch_bundle(model, moved.uri, moved.new.parent / "fetched")
    return (folder / "weights.safetensors").read_bytes()


@pytest.mark.parametrize("read_only", [False, True])
def test_a_moved_store_is_read_where_it_is(read_only: bool, moved: Moved) -> None:
    weights = (moved.new / "first" / "winner" / "weights.safetensors").read_bytes()
    before = (moved.new / "mlflow.db").read_bytes()
    with mounted_read_only(moved.new) if read_only else nullcontext():
        assert fetched(moved) == fetched(moved, "models:/resp_tune/1") == weights
        assert [entry.search.name for entry in read_searches(moved.uri)] == ["first"]
    assert not moved.old.exists()
    assert (moved.new / "mlflow.db").read_bytes() == before, "a look writes nothing"


def read_searches(uri: str) -> list[SearchEntry]:
    with readable(uri) as opened:
        return list_searches(opened)


def test_of_a_copied_store_the_copy_is_read(registered: Registered, tmp_path: Path) -> None:
    copy = Moved(registered.storage, tmp_path / "copy")
    shutil.copytree(copy.old, copy.new)
    for weights in copy.new.rglob("mlartifacts/**/weights.safetensors"):
        weights.write_bytes(b"of the copy")
    assert fetched(copy) == b"of the copy"


def test_new_models_of_a_moved_store_are_beside_it(moved: Moved, tmp_path: Path) -> None:
    assert moved.register(moved.new / "first" / "winner").version == 1, "its files are there"
    other = make_bundle(tmp_path / "other", 7)
    made = moved.register(other)
    client = moved.client()
    for version in (1, made.version):
        place = client.get_model_version_download_uri("resp_tune", str(version))
        assert place.startswith((moved.new / "mlartifacts").as_uri() + "/models/")
        model = client.get_model_version("resp_tune", str(version)).source
        model_id = str(model).removeprefix("models:/")
        assert client.get_logged_model(model_id).artifact_location == place
    assert not moved.old.exists()
    assert fetched(moved) == (other / "weights.safetensors").read_bytes()
    with mlflow_default(moved.uri):
        assert mlflow.artifacts.list_artifacts("models:/resp_tune/1"), "MLflow itself finds it too"


@contextmanager
def mlflow_default(uri: str) -> Iterator[None]:
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    yield
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]
    mlflow.set_registry_uri(None)  # type: ignore[arg-type]
    os.environ.pop("MLFLOW_REGISTRY_URI")  # MLflow leaves it to the processes of later tests


def lose_files(moved: Moved) -> None:
    shutil.rmtree(moved.new / "mlartifacts")


def cut_weights(moved: Moved) -> None:
    for weights in moved.new.rglob("mlartifacts/**/weights.safetensors"):
        weights.write_bytes(weights.read_bytes()[:-1])


def delete_model(moved: Moved) -> None:
    client = moved.client()
    source = str(client.get_model_version("resp_tune", "1").source)
    client.delete_logged_model(source.removeprefix("models:/"))


@pytest.mark.parametrize(
    ("lose", "words"),
    [
        (lose_files, r"its files are not in '.*mlartifacts/.*' or '.*mlartifacts/"),
        (delete_model, "was deleted in MLflow"),
        (cut_weights, None),
    ],
)
def test_a_model_without_its_files_is_logged_again(
    lose: Callable[[Moved], None], words: str | None, moved: Moved
) -> None:
    lose(moved)
    winner = moved.new / "first" / "winner"
    if words is not None:
        with pytest.raises(UserError, match=words) as caught:
            fetched(moved)
        assert f"--winner '{winner}'" in str(caught.value)
    version = moved.register(winner).version
    assert version > 1
    champion = moved.client().get_model_version_by_alias("resp_tune", "champion")
    assert int(champion.version) == version
    assert fetched(moved) == (winner / "weights.safetensors").read_bytes()
    assert moved.register(winner).version == version
    assert not moved.old.exists()


@pytest.mark.parametrize("place", ["/proc/mine", "{new}/a_file/x"])
def test_an_artifact_folder_that_cannot_be_written_is_named(
    place: str, moved: Moved, tmp_path: Path
) -> None:
    (moved.new / "a_file").touch()
    with closing(sqlite3.connect(moved.new / "mlflow.db")) as database, database:
        location = f"file://{quote(place.format(new=moved.new))}"
        database.execute("UPDATE experiments SET artifact_location = ?", (location,))
    with pytest.raises(RunError, match=re.escape(place.format(new=moved.new).split("/x")[0])):
        moved.register(make_bundle(tmp_path / "other", 8))
    champion = moved.client().get_model_version_by_alias("resp_tune", "champion")
    assert fetched(moved, f"models:/resp_tune/{champion.version}"), "it is still the old one"


def test_another_model_of_a_moved_store_is_not_called_lost(moved: Moved) -> None:
    client = moved.client()
    client.create_registered_model("foreign")
    client.create_model_version("foreign", (moved.old / "mlartifacts" / "x").as_uri())
    with pytest.raises(UserError, match="is not a winner of resp_tune"):
        fetched(moved, "models:/foreign/1")


def test_no_access_is_recorded_in_a_read_only_store(moved: Moved) -> None:
    access = {"time": "now", "winner_number": 0, "weights_sha256": "ab"}
    with mounted_read_only(moved.new), pytest.raises(UserError, match="read-only, so it does not"):
        record_test_access("models:/resp_tune/1", moved.uri, access)


@pytest.mark.parametrize(
    ("address", "folder"),
    [
        ("file:///a%20b/mlartifacts", "/a b/mlartifacts"),
        ("file:/a/b", "/a/b"),
        ("file://localhost/a/b", "/a/b"),
        ("/a%20b:c/d", "/a%20b:c/d"),
        ("mlruns/0", "mlruns/0"),
        ("mlflow-artifacts:/1/models", None),
        ("mlflow-artifacts://host/1", None),
        ("file://host/share", None),
        ("s3://bucket/a", None),
        ("wasbs://container@account/a", None),
        ("dbfs:/a", None),
    ],
)
def test_a_folder_on_this_machine_is_told_from_other_addresses(
    address: str, folder: str | None
) -> None:
    assert local_folder(address) == (None if folder is None else Path(folder))


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("file:///old/mlartifacts", "new"),
        ("file:///old%20place/mlartifacts", "new"),
        ("/old/mlartifacts", "new"),
        ("file://{store}/mlartifacts", None),
        ("file://{store}/kept/mlartifacts", None),
        ("file:///chosen/by/a/user", None),
        ("s3://bucket/mlartifacts", None),
        ("mlflow-artifacts:/1", None),
    ],
)
def test_what_counts_as_moved(location: str, expected: str | None, tmp_path: Path) -> None:
    (tmp_path / "kept" / "mlartifacts").mkdir(parents=True)
    found = moved_to(f"sqlite:///{tmp_path}/mlflow.db", location.format(store=tmp_path))
    assert found == (tmp_path / "mlartifacts" if expected else None)


def test_a_model_requires_the_packages_of_all_members(tmp_path: Path) -> None:
    own = {"name": "notebook", "distribution": "resp-tune", "version": "1"}
    other = {"name": "temporal", "distribution": "lung-networks", "version": "1.0+local"}
    for members in ([{"network": own}, {"network": other}, {}], [{"network": other}]):
        content = {"network": own, "members": members}
        (tmp_path / "config.json").write_text(json.dumps(content))
        assert "lung-networks==1.0" in registry._requirements(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"network": own}))
    assert not any("lung" in line for line in registry._requirements(tmp_path))


def test_a_bundle_that_could_not_be_fetched_is_not_registered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "member1.safetensors").write_bytes(b"x" * 1000)
    model_files.check_size(tmp_path)
    monkeypatch.setattr(model_files, "_MOST_BYTES", 1000)
    with pytest.raises(RunError, match="give a smaller --ensemble"):
        model_files.check_size(tmp_path)
