"""Register the winner in MLflow's model registry, and fetch it from there.

register_winner(uri, storage, run_id=run_id, bundle=Path("results/first/winner"))
fetch_bundle("models:/resp_tune@champion", uri, Path("fetched"))
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from resp_tune.common.fault_points import fault_point
from resp_tune.errors import RunError, UserError
from resp_tune.tracking.client import connect, experiment_id
from resp_tune.tracking.store_probe import check_there
from resp_tune.tracking.tags import WEIGHTS
from resp_tune.tracking.uri import redact, root_cause

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_ADDRESS = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[1-9]\d{0,8}))")
_REQUIRED = ("mlflow", "numpy", "pandas", "safetensors", "torch", "torchaudio")
_EXAMPLE_SECONDS = 0.25
# The folder of the bundle inside the logged model; `served_model.ARTIFACT` names the same.
_BUNDLE = "artifacts/winner"
_MOST_BYTES = 1 << 30


@dataclass(frozen=True)
class RegisteredModel:
    """A version in the registry; `model_uri` is `models:/NAME/VERSION`."""

    name: str
    version: int
    model_uri: str


def register_winner(
    uri: str,
    storage: Path,
    *,
    run_id: str,
    bundle: Path,
    name: str = "resp_tune",
    alias: str = "champion",
    tags: Mapping[str, str] | None = None,
) -> RegisteredModel:
    """Log the bundle as a model of run `run_id`, register it and point `alias` at it.

    The same weights keep their version. Raises `RunError` if the store fails or refuses.
    """
    from mlflow.exceptions import MlflowException

    client = connect(uri)
    experiment = experiment_id(client, uri, storage)
    digest = _weights_sha256(bundle)
    try:
        version = _version_of(client, name, digest)
        if version is None:
            with _as_default(uri):
                model_id = _log(client, experiment, run_id, bundle)
                fault_point("model-logged")
                described = {**(tags or {}), WEIGHTS: digest}
                version = _register(client, name, model_id, run_id, described)
                fault_point("model-registered")
        client.set_registered_model_alias(name, alias, str(version))
    except (MlflowException, OSError) as error:  # a refusal, or a full disk
        cause = root_cause(error, uri)
        if isinstance(error, shutil.Error):  # of many files
            cause = str(error.args[0][0][-1])
        raise RunError(
            f"the winner could not be registered in '{redact(uri)}' ({cause}): "
            "rerun the same command with the same --name to retry"
        ) from None
    return RegisteredModel(name, version, f"models:/{name}/{version}")


def _weights_sha256(bundle: Path) -> str:
    files = sorted(bundle.glob("*.safetensors"))
    if not files or not (bundle / "config.json").is_file():
        raise UserError(f"'{bundle}' is not a bundle: it needs config.json and *.safetensors")
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _version_of(client: MlflowClient, name: str, digest: str) -> int | None:
    # Every store can filter by name; a registry holds few versions.
    versions = client.search_model_versions(f"name = '{name}'", max_results=1000)
    same = [int(v.version) for v in versions if v.tags.get(WEIGHTS) == digest]
    return max(same, default=None)


def _register(
    client: MlflowClient, name: str, model_id: str, run_id: str, tags: Mapping[str, str]
) -> int:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description="Best network of a search by resp_tune")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    created = client.create_model_version(
        name, f"models:/{model_id}", run_id, tags=dict(tags), model_id=model_id
    )
    return int(created.version)


def _log(client: MlflowClient, experiment: str, run_id: str, bundle: Path) -> str:
    import mlflow.pyfunc
    from mlflow.models import Model

    import resp_tune
    from resp_tune.tracking import served_model

    example, signature = _example_and_signature(bundle)
    package = Path(resp_tune.__file__).parent
    with tempfile.TemporaryDirectory(prefix="resp_tune-model-") as scratch:
        # Under the name of the artefact, and without other files of the search's folder.
        copy = Path(scratch) / PurePosixPath(_BUNDLE).name
        copy.mkdir()
        for file in [bundle / "config.json", *bundle.glob("*.safetensors")]:
            shutil.copy(file, copy)
        code = Path(scratch) / package.name
        shutil.copytree(package, code, ignore=shutil.ignore_patterns("__pycache__"))
        # Created here, because MLflow would use the default experiment and `./mlruns`.
        model = client.create_logged_model(experiment, name="winner", source_run_id=run_id)
        Model.log(
            artifact_path=None,
            flavor=mlflow.pyfunc,
            run_id=run_id,
            model_id=model.model_id,
            python_model=str(served_model.__file__),
            artifacts={served_model.ARTIFACT: str(copy)},
            code_paths=[str(code)],
            signature=signature,
            input_example=example,
            pip_requirements=_requirements(),
        )
    return str(model.model_id)


def _example_and_signature(bundle: Path) -> tuple[object, object]:
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec

    config = json.loads((bundle / "config.json").read_bytes())
    samples = int(config["front_end"]["sample_rate"] * _EXAMPLE_SECONDS)
    noise = np.random.default_rng(0).normal(0.0, 0.1, (1, samples))
    example = noise.round(3).astype(
        np.float32
    )  # few digits, since the page of the model shows them all
    inputs = Schema([TensorSpec(np.dtype(np.float32), (-1, -1))])
    outputs = Schema([ColSpec(DataType.float, str(label)) for label in config["classes"]])
    return example, ModelSignature(inputs=inputs, outputs=outputs)


def _requirements() -> list[str]:
    # The installed versions, without a suffix such as `+cpu`, which package indexes lack.
    versions = {name: importlib.metadata.version(name) for name in (*_REQUIRED, "soundfile")}
    return [f"{name}=={version.partition('+')[0]}" for name, version in versions.items()]


@contextmanager
def _as_default(uri: str) -> Iterator[None]:
    """Make `uri` the default store, for parts of MLflow that create their own client."""
    import mlflow

    variables = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
    before = {name: os.environ.get(name) for name in variables}
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # unsets it
        mlflow.set_registry_uri(None)  # type: ignore[arg-type]  # likewise
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def fetch_bundle(model_uri: str, tracking_uri: str, into: Path) -> Path:
    """Download config.json and *.safetensors of a registered bundle into `into`; return `into`.

    `model_uri` is `models:/NAME@ALIAS` or `models:/NAME/VERSION`. No code of the model runs.
    Raises `UserError` if there is no such model, alias or store.
    """
    from mlflow.exceptions import MlflowException

    match = _ADDRESS.fullmatch(model_uri)
    if match is None:
        raise UserError(
            f"'{model_uri}' is not the URI of a model: give models:/resp_tune@champion or "
            "models:/resp_tune/VERSION"
        )
    check_there(tracking_uri)
    client = connect(tracking_uri)
    try:
        version = _find(client, match)
        with tempfile.TemporaryDirectory(prefix="resp_tune-fetch-") as scratch:
            with _as_default(tracking_uri):
                files = _download(f"models:/{version.name}/{version.version}", scratch)
            into.mkdir(parents=True, exist_ok=True)
            for downloaded in files:
                part = into / f".{downloaded.name}.{os.getpid()}.part"
                shutil.copyfile(downloaded, part)
                part.replace(into / downloaded.name)
    except (MlflowException, OSError) as error:
        raise UserError(
            f"the model '{model_uri}' cannot be fetched from '{redact(tracking_uri)}' "
            f"({root_cause(error, tracking_uri)}): {_known(client)}"
        ) from None
    return into


def _find(client: MlflowClient, match: re.Match[str]) -> ModelVersion:
    if match["alias"]:
        return client.get_model_version_by_alias(match["name"], match["alias"])
    return client.get_model_version(match["name"], match["version"])


def _known(client: MlflowClient) -> str:
    from mlflow.exceptions import MlflowException

    try:
        models = client.search_registered_models(max_results=20)
    except MlflowException:
        return "the store does not answer; start it, or give another --tracking-uri"
    known = [f"models:/{m.name}@{alias}" for m in models for alias in m.aliases]
    if not known:
        return "no model is registered there; run a search first"
    return f"known: {', '.join(known)}"


def _download(model: str, scratch: str) -> list[Path]:
    from mlflow.artifacts import download_artifacts, list_artifacts

    wanted = [
        entry
        for entry in list_artifacts(f"{model}/{_BUNDLE}")
        if not entry.is_dir
        and re.fullmatch(r"config\.json|[\w.-]+\.safetensors", _file_name(entry.path))
    ]
    names = {_file_name(entry.path) for entry in wanted}
    if "config.json" not in names or len(names) < 2:
        raise UserError(f"'{model}' is not a winner of resp_tune: it holds no bundle")
    if sum(entry.file_size or 0 for entry in wanted) > _MOST_BYTES:
        raise UserError(f"'{model}' is larger than a bundle can be: give another model")
    return [
        Path(download_artifacts(f"{model}/{_BUNDLE}/{name}", dst_path=scratch))
        for name in sorted(names)
    ]


def _file_name(path: str) -> str:
    return PurePosixPath(path).name
