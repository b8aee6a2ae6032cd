"""Scripts, Dockerfile, compose.yaml and rayjob.yaml: the tools' own checks, then our invariants.

The invariants are what no tool knows: secrets stay out of the files, every name, volume and host
that is referred to exists, images are pinned, and nothing is published or run with more rights than
it needs.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from support.recipes import FOLDER, ROOT, calls, commands, documents, header_commands, text

BIN = Path(sys.executable).parent
SCRIPTS = (".ci/run", "scripts/search", "scripts/test", "scripts/ui", "scripts/setup.sh",
           "scripts/cluster/slurm.sh")  # fmt: skip
RAYJOB_SCHEMA = "tests/data/kuberay/rayjob.schema.yaml"
KUBERNETES = "1.34"
PINNED = re.compile(r":v?\d+\.\d+")


def rayjob() -> dict[str, Any]:
    return next(o for o in documents(text("rayjob.yaml")) if o["kind"] == "RayJob")


@pytest.mark.parametrize(
    "tool",
    [
        *(f"shellcheck -x -P SCRIPTDIR -P {ROOT} {script}" for script in SCRIPTS),
        "hadolint --no-color scripts/cluster/Dockerfile",
        "check-jsonschema --builtin-schema vendor.compose-spec scripts/cluster/compose.yaml",
    ],
)
def test_tools_find_nothing(tool: str) -> None:
    name, *arguments = shlex.split(tool)
    done = subprocess.run(
        [BIN / name, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_shell_scripts_have_unix_line_ends_in_every_clone() -> None:
    """Also where git is set to turn line ends, as on Windows."""
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    files = [
        name
        for name in listed.stdout.splitlines()
        if name.endswith(".sh")
        or Path(name).name.startswith("Dockerfile")
        or (ROOT / name).read_bytes().startswith(b"#!")
    ]
    assert {"scripts/search", "scripts/test", "scripts/ui", ".ci/run"} <= set(files)
    command = ["git", "check-attr", "eol", "--", *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert [line for line in done.stdout.splitlines() if not line.endswith(": eol: lf")] == []


def test_kubernetes_takes_every_object_and_kuberay_its_job(tmp_path: Path) -> None:
    for o in documents(text("rayjob.yaml")):
        if o["kind"] != "RayJob":
            kubernetes_validate.validate(o, KUBERNETES, strict=True)
    for pod in pods()["RayJob"]:
        template = {"apiVersion": "v1", "kind": "PodTemplate", "template": pod}
        kubernetes_validate.validate(template, KUBERNETES, strict=True)
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(rayjob()))
    check = [BIN / "check-jsonschema", "--schemafile", ROOT / RAYJOB_SCHEMA]
    done = subprocess.run(
        [*check, tmp_path / "job.yaml"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


# --- Dockerfile ---


def instructions() -> list[tuple[str, str]]:
    plain = re.sub(r"^\s*#.*\n", "", text("Dockerfile"), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", plain).splitlines()
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines) if rest]


def test_the_image_is_pinned_and_has_no_rights() -> None:
    ignore = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
    for word, rest in instructions():
        if word == "FROM":
            assert PINNED.search(rest)
        if word == "COPY":
            for source in rest.split()[:-1]:
                assert (ROOT / source).exists()
                assert f"!{source.rstrip('/')}" in ignore
        for arguments in calls("pip install", [rest] if word == "RUN" else []):
            assert arguments[arguments.index("--constraint") + 1] == "constraints.txt"
    users = [rest for word, rest in instructions() if word == "USER"]
    assert re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", users[-1])


@pytest.mark.parametrize(("variant", "code"), [("cpu", 0), ("cuda", 0), ("gpu", 2)])
def test_the_variant_is_one_of_two(variant: str, code: int, tmp_path: Path) -> None:
    """The RUN step itself, with a pip that prints its arguments."""
    step = next(r for word, r in instructions() if word == "RUN" and "$VARIANT" in r)
    (tmp_path / "pip").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "pip").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "VARIANT": variant}
    done = subprocess.run(
        ["sh", "-c", step], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == code
    assert ("whl/cpu" in done.stdout) == (variant == "cpu")
    assert ("torchaudio" in done.stdout) == (code == 0)


# --- compose.yaml ---


def compose() -> dict[str, Any]:
    """The file as read where no variable is set."""
    content: dict[str, Any] = yaml.safe_load(
        re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text("compose.yaml"))
    )
    return content


def test_every_name_in_compose_exists() -> None:
    services = compose()["services"]
    lines = "\n".join(commands("compose.yaml", text("compose.yaml")))
    used: dict[str, set[str]] = {"secrets": set(), "volumes": set()}
    for service in services.values():
        assert all("healthcheck" in services[other] for other in service.get("depends_on", {}))
        secrets = set(service.get("secrets", []))
        assert set(re.findall(r"/run/secrets/(\w+)", yaml.safe_dump(service))) <= secrets
        used["secrets"] |= secrets
        volumes = {volume.split(":")[0] for volume in service.get("volumes", [])}
        used["volumes"] |= {v for v in volumes if not v.startswith(("/", ".", "~"))}
    assert used == {kind: set(compose()[kind]) for kind in used}
    hosts = set(re.findall(r"(?:https?://|@|--address=)([A-Za-z][\w-]*):\d+", lines))
    assert hosts <= {*services, "localhost"}
    assert set(re.findall(r"compose\.yaml exec (\S+)", lines)) <= set(services)
    (search,) = calls("python -m resp_tune.search", lines.splitlines())
    for name in ("head", "worker", "gpu-worker"):
        mounted = {v.rpartition(":")[2] for v in services[name]["volumes"]}
        assert {search[search.index(flag) + 1] for flag in ("--data", "--storage")} <= mounted


def test_compose_publishes_to_this_machine_and_asks_for_tokens() -> None:
    for service in compose()["services"].values():
        assert PINNED.search(service["image"])
        assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", []))
        environment = service.get("environment", {})
        assert not [key for key in environment if re.search(r"(PASSWORD|TOKEN)$", key)]
        if "ray" in str(service.get("command", "")):
            assert environment["RAY_AUTH_MODE"] == "token"


def test_the_secrets_are_made_by_the_first_command(tmp_path: Path) -> None:
    first = commands("compose.yaml", text("compose.yaml"))[0]
    (tmp_path / "scripts" / "cluster").mkdir(parents=True)
    subprocess.run(["bash", "-euc", first], cwd=tmp_path, check=True)
    made = tmp_path / "scripts" / "cluster" / ".env"
    assert made.stat().st_mode & 0o777 == 0o600
    values = dict(shlex.split(line)[0].split("=") for line in made.read_text().splitlines())
    assert set(values) == {s["environment"] for s in compose()["secrets"].values()}
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in values.values())


@pytest.mark.parametrize("name", ["compose.yaml", "rayjob.yaml"])
def test_mlflow_answers_to_the_name_that_the_search_uses(name: str) -> None:
    lines = "\n".join(commands(name, text(name)))
    (tracking,) = set(re.findall(r"--tracking-uri https?://(\S+)", lines))
    allowed = re.search(r"--allowed-hosts[ =](\S+)", lines)
    assert allowed is not None
    assert tracking in allowed[1].split(",")


# --- rayjob.yaml ---


def pods() -> dict[str, list[dict[str, Any]]]:
    """The pod templates of the manifest, by the kind of their object."""
    cluster = rayjob()["spec"]["rayClusterSpec"]
    found = {"RayJob": [g["template"] for g in (cluster["headGroupSpec"],
                                                *cluster["workerGroupSpecs"])]}  # fmt: skip
    for o in documents(text("rayjob.yaml")):
        if o["kind"] in ("Deployment", "StatefulSet"):
            found.setdefault(o["kind"], []).append(o["spec"]["template"])
    return found


def containers() -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Each container with its pod's spec."""
    specs = [pod["spec"] for group in pods().values() for pod in group]
    return [(s, c) for s in specs for c in (*s.get("initContainers", []), *s["containers"])]


def test_every_name_in_the_manifest_exists() -> None:
    objects, content = documents(text("rayjob.yaml")), text("rayjob.yaml")
    names = {(o["kind"], o["metadata"]["name"]) for o in objects}
    templates = {t["metadata"]["name"] for o in objects
                 for t in o.get("spec", {}).get("volumeClaimTemplates", [])}  # fmt: skip
    secrets = {
        (name, literal.split("=")[1])
        for name, *literals in calls("kubectl create secret generic", header_commands(content))
        for literal in literals
        if literal.startswith("--from-literal=")
    }
    used = {(rayjob()["spec"]["rayClusterSpec"]["authOptions"]["secretName"], "auth_token")}
    for spec, container in containers():
        volumes = {v["name"]: v for v in spec.get("volumes", [])}
        mounts = {m["name"] for m in container.get("volumeMounts", [])}
        assert mounts <= {*volumes, *templates}
        claims = [v["persistentVolumeClaim"] for v in volumes.values() if len(v) > 1
                  and "persistentVolumeClaim" in v]  # fmt: skip
        assert all(("PersistentVolumeClaim", c["claimName"]) in names for c in claims)
        references = [v.get("valueFrom", {}).get("secretKeyRef") for v in container.get("env", [])]
        used |= {(r["name"], r["key"]) for r in references if r}
    assert used == secrets
    listening = {"127.0.0.1:5000"}
    for service in (o for o in objects if o["kind"] == "Service"):
        selector = service["spec"]["selector"].items()
        (pod,) = [pod for group in pods().values() for pod in group
                  if selector <= pod.get("metadata", {}).get("labels", {}).items()]  # fmt: skip
        ports = {p["name"] for c in pod["spec"]["containers"] for p in c.get("ports", [])}
        assert {p["targetPort"] for p in service["spec"]["ports"]} <= ports
        name = service["metadata"]["name"]
        listening |= {f"{name}:{p['port']}" for p in service["spec"]["ports"]}
    lines = "\n".join(commands("rayjob.yaml", content))
    assert set(re.findall(r"(?:https?://|@)([\w.-]+:\d+)", lines)) <= listening


def test_containers_have_limits_and_no_rights() -> None:
    for spec, container in containers():
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["automountServiceAccountToken"] is False
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert PINNED.search(container["image"])
        assert "memory" in container["resources"]["limits"]
        literal = [v["name"] for v in container.get("env", []) if "value" in v]
        assert not [name for name in literal if re.search("PASS|TOKEN", name)]


def test_the_job_asks_for_what_its_cluster_has() -> None:
    job = rayjob()["spec"]
    cluster = job["rayClusterSpec"]
    assert cluster["rayVersion"] == version("ray")
    assert cluster["authOptions"]["mode"] == "token"
    (arguments,) = calls("python -m resp_tune.search", [job["entrypoint"]])
    firsts = [g["template"]["spec"]["containers"][0] for g in cluster["workerGroupSpecs"]]
    limits = [first["resources"]["limits"] for first in firsts]
    offered = sum(
        group["maxReplicas"] * int(limit.get("nvidia.com/gpu", 0))
        for group, limit in zip(cluster["workerGroupSpecs"], limits, strict=True)
    )
    assert int(arguments[arguments.index("--gpus") + 1]) <= offered
    head = cluster["headGroupSpec"]["template"]["spec"]["containers"][0]
    for container in (head, *firsts):
        mounted = tuple(f"{m['mountPath']}/" for m in container["volumeMounts"])
        for flag in ("--data", "--storage"):
            assert arguments[arguments.index(flag) + 1].startswith(mounted)
    claim = next(o for o in documents(text("rayjob.yaml")) if o["kind"] == "PersistentVolumeClaim")
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
