"""rayjob.yaml: against Kubernetes' and KubeRay's schemas, and its names against what they name."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from support.recipes import calls, commands, documents, header_commands, text

KUBERNETES = "1.34"
RAYJOB = Path(__file__).parent / "data" / "kuberay" / "rayjob.schema.yaml"


def wrong(content: str) -> list[str]:
    """Everything that is wrong with the objects of a manifest; first of all, their shape."""
    objects = documents(content)
    return list(_against_schemas(objects)) or [
        *_names(objects, _secrets(content)),
        *_services(objects, content),
        *_containers(objects),
        *_rayjob(next(o for o in objects if o["kind"] == "RayJob")["spec"], content),
    ]


def _against_schemas(objects: list[dict[str, Any]]) -> Iterator[str]:
    rayjob = jsonschema.Draft202012Validator(yaml.safe_load(RAYJOB.read_text(encoding="utf-8")))
    plain = []
    for o in objects:
        if o["kind"] == "RayJob":
            yield from (f"{e.json_path}: {e.message}" for e in rayjob.iter_errors(o))
            plain += [
                {"apiVersion": "v1", "kind": "PodTemplate", "template": _template(owner)}
                for owner in _owners(o)
            ]
        else:
            plain.append(o)
    yield from filter(None, (_kubernetes_says(json.dumps(o)) for o in plain))


@functools.cache  # broken copies differ from the manifest in one object each
def _kubernetes_says(document: str) -> str:
    o = json.loads(document)
    try:
        kubernetes_validate.validate(o, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return f"{o['kind']}: {error.json_path}: {error.message}"
    return ""


def _owners(o: dict[str, Any]) -> list[dict[str, Any]]:
    """What holds the pod templates of an object."""
    if o["kind"] == "RayJob":
        cluster = o["spec"]["rayClusterSpec"]
        return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [o["spec"]] if o["kind"] in ("Deployment", "StatefulSet") else []


def _template(owner: dict[str, Any]) -> dict[str, Any]:
    return owner["template"]


def _pods(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [_template(owner) for o in objects for owner in _owners(o)]


def _all_containers(pod: dict[str, Any]) -> list[dict[str, Any]]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def _secrets(content: str) -> dict[str, set[str]]:
    """Secrets that the commands at the top make, with their keys."""
    made = {}
    for arguments in calls("kubectl create secret generic", header_commands(content)):
        name, *literals = arguments
        made[name] = {a.split("=")[1] for a in literals if a.startswith("--from-literal=")}
    return made


def _names(objects: list[dict[str, Any]], secrets: dict[str, set[str]]) -> Iterator[str]:
    """Claims, volumes, secrets and labels that are referred to and are not there."""
    claims = {o["metadata"]["name"] for o in objects if o["kind"] == "PersistentVolumeClaim"}
    for o in objects:
        for owner in _owners(o):
            pod = _template(owner)
            selector = owner.get("selector", {}).get("matchLabels", {})
            labels = pod.get("metadata", {}).get("labels", {})
            if not selector.items() <= labels.items():
                yield f"{o['metadata']['name']} selects {selector}, its pods have {labels}"
            templates = owner.get("volumeClaimTemplates", [])
            volumes = {v["name"] for v in pod["spec"].get("volumes", [])}
            volumes |= {t["metadata"]["name"] for t in templates}
            for volume in pod["spec"].get("volumes", []):
                claim = volume.get("persistentVolumeClaim", {}).get("claimName")
                if claim and claim not in claims:
                    yield f"no claim {claim}"
            for container in _all_containers(pod):
                mounts = {m["name"] for m in container.get("volumeMounts", [])}
                yield from (f"{container['name']}: no volume {m}" for m in mounts - volumes)
    for name, key in _used_secrets(objects):
        if key not in secrets.get(name, set()):
            yield f"no secret {name} with the key {key}"


def _used_secrets(objects: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    for pod in _pods(objects):
        for container in _all_containers(pod):
            for variable in container.get("env", []):
                reference = variable.get("valueFrom", {}).get("secretKeyRef")
                if reference:
                    yield reference["name"], reference["key"]
    for o in objects:
        if o["kind"] == "RayJob":
            # KubeRay reads this key of it.
            yield o["spec"]["rayClusterSpec"]["authOptions"]["secretName"], "auth_token"


def _services(objects: list[dict[str, Any]], content: str) -> Iterator[str]:
    """Hosts in commands that are no service, services without pods, ports without a listener."""
    listening = {}
    for service in (o for o in objects if o["kind"] == "Service"):
        name, spec = service["metadata"]["name"], service["spec"]
        pods = [
            pod
            for pod in _pods(objects)
            if spec["selector"].items() <= pod.get("metadata", {}).get("labels", {}).items()
        ]
        if len(pods) != 1:
            yield f"service {name} selects {len(pods)} kinds of pods"
            continue
        named = {p["name"] for c in pods[0]["spec"]["containers"] for p in c.get("ports", [])}
        for port in spec["ports"]:
            listening[f"{name}:{port['port']}"] = port
            if port["targetPort"] not in named:
                yield f"service {name}: no port {port['targetPort']} in its pod"
    stateful = {o["spec"]["serviceName"] for o in objects if o["kind"] == "StatefulSet"}
    yield from (f"no service {n}" for n in stateful - {a.split(":")[0] for a in listening})
    asked = set(re.findall(r"(?:https?://|@)([\w.-]+:\d+)", "\n".join(commands("x.yaml", content))))
    yield from (f"no service at {address}" for address in asked - {*listening, "127.0.0.1:5000"})
    allowed = re.search(r"--allowed-hosts=(\S+)", content)
    tracking = re.search(r"--tracking-uri https?://(\S+)", content)
    if not allowed or not tracking or tracking[1] not in allowed[1].split(","):
        yield f"MLflow does not allow the host of {tracking and tracking[0]}"


def _containers(objects: list[dict[str, Any]]) -> Iterator[str]:
    """What keeps a node safe and its pods schedulable, in every container."""
    for pod in _pods(objects):
        spec = pod["spec"]
        if not spec["securityContext"].get("runAsNonRoot"):
            yield f"{spec['containers'][0]['name']} may run as root"
        if spec.get("automountServiceAccountToken") is not False:
            yield f"{spec['containers'][0]['name']} holds a token of the Kubernetes API"
        for container in _all_containers(pod):
            name = container["name"]
            if container.get("securityContext", {}).get("allowPrivilegeEscalation") is not False:
                yield f"{name} may gain privileges"
            tag = container["image"].rpartition(":")[2]
            if not re.match(r"\d+\.\d+", tag):
                yield f"{name}: image {container['image']} is not pinned"
            if "memory" not in container.get("resources", {}).get("limits", {}):
                yield f"{name} has no memory limit"
            literal = {v["name"] for v in container.get("env", []) if "value" in v}
            yield from (
                f"{n} stands in the manifest" for n in literal if re.search("PASS|TOKEN", n)
            )
    for o in objects:
        for owner in _owners(o) if o["kind"] != "RayJob" else []:
            for container in _template(owner)["spec"]["containers"]:
                if "readinessProbe" not in container:
                    yield f"{container['name']} has no readiness probe"


def _rayjob(job: dict[str, Any], content: str) -> Iterator[str]:
    cluster = job["rayClusterSpec"]
    if cluster["rayVersion"] != version("ray"):
        yield f"rayVersion {cluster['rayVersion']}, but Ray is {version('ray')}"
    if cluster["authOptions"].get("mode") != "token":
        yield "no token authentication"
    gpus = 0
    for group in cluster["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        gpus += group["maxReplicas"] * int(limits.get("nvidia.com/gpu", 0))
    (arguments,) = calls("python -m resp_tune.search", [job["entrypoint"]])
    asked = int(arguments[arguments.index("--gpus") + 1])
    if asked > gpus:
        yield f"--gpus {asked}, but the workers have {gpus}"
    first = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]
    mounted = {m["mountPath"] for m in first["volumeMounts"]}
    for flag in ("--data", "--storage"):
        path = arguments[arguments.index(flag) + 1]
        for group in cluster["workerGroupSpecs"]:
            ray = group["template"]["spec"]["containers"][0]
            here = {m["mountPath"] for m in ray["volumeMounts"]} & mounted
            if not any(path.startswith(f"{m}/") for m in here):
                yield f"{flag} {path} is not mounted by head and workers"
    claim = next(o for o in documents(content) if o["kind"] == "PersistentVolumeClaim")
    if claim["spec"]["accessModes"] != ["ReadWriteMany"]:
        yield "the shared volume cannot be mounted by several nodes"


def test_the_manifest_is_right() -> None:
    assert wrong(text("rayjob.yaml")) == []


@pytest.mark.parametrize(
    ("right", "broken", "said"),
    [
        # KubeRay's own fields
        ("backoffLimit: 1", "backofLimit: 1", "backofLimit"),
        ("secretName: resp-tune", "secret: resp-tune", "secret"),
        ("mode: token", "mode: tokens", "tokens"),
        ('num-cpus: "0"', "num-cpus: 0", "0 is not of type 'string'"),
        ("maxReplicas: 4", 'maxReplicas: "4"', "'4' is not of type"),
        ("shutdownAfterJobFinishes: true", "shutdownAfterJobFinishes: false", "True was expected"),
        # Kubernetes' own, in plain objects and in Ray's pod templates
        ("serviceName:", "servicename:", "servicename"),
        ("targetPort: http", "targetport: http", "targetport"),
        ("containers:\n            # Without", "container:\n            # Without", "container"),
        ("operator: Exists", "operators: Exists", "operators"),
        ("emptyDir: {sizeLimit: 50Gi}", "emptyDir: {size: 50Gi}", "size"),
        # names
        ("{name: shm, mountPath", "{name: shn, mountPath", "no volume shn"),
        ("claimName: resp-tune-shared", "claimName: resp-tune", "no claim resp-tune"),
        ("key: auth_token", "key: token", "no secret resp-tune with the key token"),
        ("generic resp-tune ", "generic resp-tunes ", "no secret resp-tune with"),
        ("matchLabels: {app: resp-tune-mlflow}", "matchLabels: {app: mlflow}", "selects"),
        ("selector: {app: resp-tune-postgres}\n  ports", "selector: {app: pg}\n  ports", "0 kinds"),
        ("mlflow@resp-tune-postgres:", "mlflow@postgres:", "no service at postgres:5432"),
        ("http://resp-tune-mlflow:5000", "http://mlflow:5000", "no service at mlflow:5000"),
        ("port: 5000, targetPort: http", "port: 80, targetPort: http", "no service at"),
        ("name: http, containerPort", "name: web, containerPort", "no port http"),
        ("--allowed-hosts=resp-tune-mlflow:5000,", "--allowed-hosts=mlflow,", "does not allow"),
        # safety
        ("runAsNonRoot: true\n            runAsUser: 1000", "runAsUser: 0", "may run as root"),
        ("allowPrivilegeEscalation: false", "privileged: false", "may gain privileges"),
        ("postgres:17.6-bookworm", "postgres:latest", "not pinned"),
        ("readinessProbe:\n            exec", "livenessProbe:\n            exec", "no readiness"),
        ("mode: token", "mode: disabled", "no token authentication"),
        # what the search is told against what there is
        ('rayVersion: "2.60.0"', 'rayVersion: "2.59.0"', "rayVersion 2.59.0"),
        ("--gpus 4", "--gpus 8", "--gpus 8, but the workers have 4"),
        ("--storage /shared/results", "--storage /results", "--storage /results is not mounted"),
        ("[ReadWriteMany]", "[ReadWriteOnce]", "cannot be mounted by several"),
    ],
)
def test_a_mistake_in_the_manifest_is_found(right: str, broken: str, said: str) -> None:
    content = text("rayjob.yaml")
    assert right in content
    found = wrong(content.replace(right, broken))
    assert any(said in line for line in found), found
