"""Register the winner in MLflow's model registry, fetch it from there, record its test accesses.

register_winner(uri, storage, run_id=run_id, bundle=Path("results/first/winner"))
fetch_bundle("models:/resp_tune@champion", uri, Path("fetched"))
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from resp_tune.common.fault_points import fault_point
from resp_tune.errors import RunError, UserError
from resp_tune.tracking.client import connect, experiment_id
from resp_tune.tracking.mlflow_internals import without_package_index
from resp_tune.tracking.model_files import (
    BUNDLE,
    bundle_files,
    bundle_sizes,
    check_size,
    fetch_files,
    holds,
)
from resp_tune.tracking.moved_store import is_writable, readable
from resp_tune.tracking.store_probe import check_there, probe
from resp_tune.tracking.tags import Tag
from resp_tune.tracking.uri import redact, root_cause, sqlite_file

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_ADDRESS = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>[1-9]\d{0,8}))")
_REQUIRED = ("mlflow", "numpy", "pandas", "safetensors", "torch", "torchaudio", "soundfile")
_OWN = "resp-tune"  # its code goes into the model
_OF_ENCODERS = ((".tflite", "ai-edge-litert"), (".onnx", "onnx"), (".onnx", "onnxruntime"))
_EXAMPLE_SECONDS = 0.25

READING = "resp_tune.test_reading"  # `.2` and so on: with other recordings
IDENTITY = ("weights_sha256", "recordings_sha256")


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

    The same weights keep their version while its files are there. Raises `RunError` if the store
    fails or refuses, or has not got the files.
    """
    from mlflow.exceptions import MlflowException

    client = connect(uri)
    experiment = experiment_id(client, uri, storage)
    digest = _weights_sha256(bundle)
    check_size(bundle)
    try:
        with _as_default(uri):
            same = sorted(_versions(client, name, digest), key=lambda v: -int(v.version))
            whole = (v for v in same if holds(bundle_sizes(client, uri, v), bundle))
            version = next((int(v.version) for v in whole), None)
            if version is None:
                model_id = _log(client, experiment, run_id, bundle)
                fault_point("model-logged")
                described = {**(tags or {}), Tag.WEIGHTS: digest}
                version = _register(client, name, model_id, run_id, described)
                fault_point("model-registered")
                made = client.get_model_version(name, str(version))
                if not holds(bundle_sizes(client, uri, made), bundle):
                    raise RunError(
                        f"the winner could not be registered in '{redact(uri)}': the store took "
                        f"version {version} of '{name}' and has not got all of its files"
                    )
        client.set_registered_model_alias(name, alias, str(version))
    except (MlflowException, OSError) as error:  # a refusal, or a full disk
        cause = root_cause(error, uri)
        if isinstance(error, shutil.Error):  # of many files
            cause = str(error.args[0][0][-1])
        raise RunError(f"the winner could not be registered in '{redact(uri)}' ({cause})") from None
    return RegisteredModel(name, version, f"models:/{name}/{version}")


def _weights_sha256(bundle: Path) -> str:
    files = sorted(bundle.glob("*.safetensors"))
    if not files or not (bundle / "config.json").is_file():
        raise UserError(f"'{bundle}' is not a bundle: it needs config.json and *.safetensors")
    return str(_config(bundle)["weights_sha256"])


def _config(bundle: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((bundle / "config.json").read_bytes())
    return content


def _versions(client: MlflowClient, name: str, digest: str) -> list[ModelVersion]:
    """Return the versions of a model that have these weights."""
    # Every store can filter by name; a registry holds few versions.
    versions = client.search_model_versions(f"name = '{name}'", max_results=1000)
    return [version for version in versions if version.tags.get(Tag.WEIGHTS) == digest]


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
        copy = Path(scratch) / PurePosixPath(BUNDLE).name
        copy.mkdir()
        for file in bundle_files(bundle):
            shutil.copy(file, copy)
        code = Path(scratch) / package.name
        shutil.copytree(package, code, ignore=shutil.ignore_patterns("__pycache__"))
        # Created here, because MLflow would use the default experiment and `./mlruns`.
        model = client.create_logged_model(experiment, name="winner", source_run_id=run_id)
        with without_package_index():
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
                pip_requirements=_requirements(copy),
            )
    return str(model.model_id)


def _example_and_signature(bundle: Path) -> tuple[object, object]:
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec

    config = _config(bundle)
    samples = int(config["front_end"]["sample_rate"] * _EXAMPLE_SECONDS)
    noise = np.random.default_rng(0).normal(0.0, 0.1, (1, samples))
    # Few digits, since the page of the model shows them all.
    example = noise.round(3).astype(np.float32)
    inputs = Schema([TensorSpec(np.dtype(np.float32), (-1, -1))])
    outputs = Schema([ColSpec(DataType.float, str(label)) for label in config["classes"]])
    return example, ModelSignature(inputs=inputs, outputs=outputs)


def _requirements(bundle: Path) -> list[str]:
    config = _config(bundle)
    networks = [member.get("network", {}) for member in config.get("members", [config])]
    # The installed versions, without a suffix such as `+cpu`, which package indexes lack.
    encoders = (name for suffix, name in _OF_ENCODERS if (bundle / f"encoder{suffix}").exists())
    versions = {name: importlib.metadata.version(name) for name in (*_REQUIRED, *encoders)}
    for network in networks:
        if (name := network.get("distribution", _OWN)) != _OWN:
            versions[name] = network["version"]
    return [f"{name}=={version.partition('+')[0]}" for name, version in versions.items()]


@contextmanager
def _as_default(uri: str) -> Iterator[None]:
    """Make `uri` the default store, for parts of MLflow that create their own client."""
    import mlflow

    variables = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
    before = {name: os.environ[name] for name in variables if name in os.environ}
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # unsets it
        mlflow.set_registry_uri(None)  # type: ignore[arg-type]  # likewise
        for name in variables:
            os.environ.pop(name, None)
        os.environ.update(before)


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
    with (
        readable(tracking_uri) as opened,
        tempfile.TemporaryDirectory(prefix="resp_tune-fetch-") as scratch,
    ):
        probe(opened, write=False)
        client = connect(opened)
        try:
            if match["alias"]:
                version = client.get_model_version_by_alias(match["name"], match["alias"])
            else:
                version = client.get_model_version(match["name"], match["version"])
            with _as_default(opened):
                files = fetch_files(client, tracking_uri, version, scratch)
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


def _known(client: MlflowClient) -> str:
    from mlflow.exceptions import MlflowException

    try:
        models = client.search_registered_models(max_results=20)
    except MlflowException:
        return "the store does not answer; start it, or give another --tracking-uri"
    known = ", ".join(f"models:/{m.name}@{alias}" for m in models for alias in m.aliases)
    return f"known: {known}" if known else "no model is registered there; run a search first"


def same_access(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Return whether both are of the same weights on the same recordings.

    A hash that an older record lacks counts as equal.
    """
    both = ((one.get(key), other.get(key)) for key in IDENTITY)
    return all(a == b or a is None or b is None for a, b in both)


def record_test_access(
    model_uri: str, tracking_uri: str, access: Mapping[str, Any]
) -> tuple[dict[str, Any], str]:
    """Tag the versions of a model that have the weights of `access`; existing tags are kept.

    `model_uri` is `models:/NAME@ALIAS` or `models:/NAME/VERSION`. Returns the first access with
    these weights and recordings, and a description of what carries the record. Raises `UserError`
    if it cannot be written.
    """
    from mlflow.exceptions import MlflowException

    name = model_uri.removeprefix("models:/").split("@")[0].split("/")[0]
    file = sqlite_file(tracking_uri)
    if file is not None and file.exists() and not is_writable(file):
        raise UserError(
            f"the access to the test set cannot be recorded in '{file}', which is read-only, so it "
            "does not happen: copy the results to a writable place"
        )
    client = connect(tracking_uri)
    try:
        # By weights, because an alias may have moved since the model was fetched.
        versions = _versions(client, name, access["weights_sha256"])
        same = [r for v in versions for r in _accesses(v.tags) if same_access(r, access)]
        first = min(same, key=lambda r: str(r.get("time")), default=dict(access))
        for version in versions:
            own = _accesses(version.tags)
            if not any(same_access(r, access) for r in own):
                tag = f"{READING}.{len(own) + 1}" if own else READING
                client.set_model_version_tag(name, version.version, tag, json.dumps(first))
    except MlflowException as error:
        raise UserError(
            f"the access to the test set cannot be recorded with '{model_uri}' in "
            f"'{redact(tracking_uri)}' ({root_cause(error, tracking_uri)}), so it does not happen"
        ) from None
    if not versions:
        raise UserError(
            f"no version of '{name}' in '{redact(tracking_uri)}' has these weights, so an access "
            "to the test set cannot be recorded: give the winner/ folder of a search"
        )
    return first, f"version {', '.join(str(v.version) for v in versions)} of model {name}"


def _accesses(tags: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the accesses recorded with one version, without unreadable tags."""
    accesses = []
    for name, text in tags.items():
        if name == READING or name.startswith(f"{READING}."):
            with suppress(ValueError, RecursionError):
                accesses.append(json.loads(text))
    return [access for access in accesses if isinstance(access, dict)]
