"""Dockerfile and compose.yaml: linted, and every name in them against what it names."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from support.recipes import FOLDER, ROOT, calls, commands, text

BIN = Path(sys.executable).parent
SCHEMA = json.loads(
    files("check_jsonschema")
    .joinpath("builtin_schemas/vendor/compose-spec.json")
    .read_text(encoding="utf-8")
)


# --- Dockerfile ---


def lint(content: str, folder: Path) -> list[str]:
    """Hadolint's findings, and what it has no rule for."""
    file = folder / "Dockerfile"
    file.write_text(content, encoding="utf-8")
    done = subprocess.run(
        [BIN / "hadolint", "--no-color", file], capture_output=True, text=True, check=False
    )
    return [*done.stdout.splitlines(), *_unlinted(_instructions(content))]


def _instructions(content: str) -> list[tuple[str, str]]:
    """Instruction and arguments of each, continued lines joined."""
    plain = re.sub(r"^\s*#.*\n", "", content, flags=re.MULTILINE)
    joined = re.sub(r"\\\n\s*", "", plain)
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line]  # type: ignore[misc]


def _unlinted(instructions: list[tuple[str, str]]) -> Iterator[str]:
    for word, rest in instructions:
        if word == "FROM" and not re.search(r":\d+\.\d+\.\d+|@sha256:", rest):
            yield f"base image {rest} is not pinned to a release"
        if word == "COPY":
            *sources, _target = rest.split()
            yield from (f"COPY of {s}, which is not there" for s in sources if not _copied(s))
        for arguments in calls("pip install", [rest] if word == "RUN" else []):
            if arguments[arguments.index("--constraint") + 1 :][:1] != ["constraints.txt"]:
                yield f"pip install without the constraints: {arguments}"
    users = [rest for word, rest in instructions if word == "USER"]
    if not users or not re.fullmatch(r"[1-9]\d*(:[1-9]\d*)?", users[-1]):
        yield "the last USER is not the number of a user without rights"


def _copied(source: str) -> bool:
    """Whether a COPY's source is in the checkout and let through by the ignore file."""
    lines = (FOLDER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    return (ROOT / source).exists() and f"!{source.rstrip('/')}" in lines


def test_the_image_is_built_well(tmp_path: Path) -> None:
    assert lint(text("Dockerfile"), tmp_path) == []


@pytest.mark.parametrize(
    ("right", "broken", "said"),
    [
        ("python:3.11.14-slim-bookworm", "python:latest", "DL3007"),
        ("python:3.11.14-slim-bookworm", "python:3.11-slim", "not pinned to a release"),
        ("# hadolint ignore=DL3008\n", "", "DL3008"),
        (" \\\n && rm -rf /var/lib/apt/lists/*", "", "DL3009"),
        ("--no-install-recommends ", "", "DL3015"),
        ("pip install --no-cache-dir", "pip install", "DL3042"),
        ('--constraint constraints.txt ".[cluster]"', "--constraint c.txt .", "without the const"),
        ("COPY search_spaces/ search_spaces/", "COPY spaces/ search_spaces/", "COPY of spaces/"),
        ("COPY pyproject.toml", "COPY docs/ pyproject.toml", "COPY of docs/"),
        ("USER 1000:1000", "USER root", "DL3002"),
        ("USER 1000:1000", "USER tuner", "the last USER"),
        ("USER 1000:1000", "", "the last USER"),
    ],
)
def test_a_mistake_in_the_image_is_found(
    right: str, broken: str, said: str, tmp_path: Path
) -> None:
    content = text("Dockerfile")
    assert right in content
    found = lint(content.replace(right, broken), tmp_path)
    assert any(said in line for line in found), found


def test_torch_and_torchaudio_come_as_a_pair_from_one_index() -> None:
    runs = [rest for word, rest in _instructions(text("Dockerfile")) if word == "RUN"]
    pairs = [a for a in calls("pip install", runs) if "torch" in a]
    assert [{"torch", "torchaudio"} <= set(a) for a in pairs] == [True, True]
    cpu, cuda = pairs
    assert cpu[cpu.index("--index-url") + 1] == "https://download.pytorch.org/whl/cpu"
    assert "--index-url" not in cuda
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert {p.split("==")[0] for p in pins} >= {"torch", "torchaudio", "ray", "mlflow", "psycopg"}


def test_the_variant_is_one_of_two(tmp_path: Path) -> None:
    """The RUN step itself, by a shell, with a pip that only says what it was asked for."""
    step = next(r for w, r in _instructions(text("Dockerfile")) if w == "RUN" and "$VARIANT" in r)
    pip = tmp_path / "pip"
    pip.write_text('#!/bin/sh\necho "$@"\n', encoding="utf-8")
    pip.chmod(0o755)

    def run(variant: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "VARIANT": variant}
        return subprocess.run(
            ["sh", "-c", step], env=environment, capture_output=True, text=True, check=False
        )

    assert "whl/cpu" in run("cpu").stdout
    assert "torchaudio" in run("cuda").stdout
    assert "whl/cpu" not in run("cuda").stdout
    assert run("gpu").returncode == 2
    assert "'gpu'" in run("gpu").stderr


# --- compose.yaml ---


def wrong(content: str) -> list[str]:
    """Everything that is wrong with a compose file; first of all, its shape."""
    # As where nothing is set: each variable's own default.
    compose = yaml.safe_load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", content))
    validator = jsonschema.validators.validator_for(SCHEMA)(SCHEMA)
    shape = [f"{e.json_path}: {e.message}" for e in validator.iter_errors(compose)]
    return shape or [
        *_references(compose),
        *_addresses(compose, commands("compose.yaml", content)),
        *_published(compose),
    ]


def _references(compose: dict[str, Any]) -> Iterator[str]:
    services = compose["services"]
    used: dict[str, set[str]] = {"secrets": set(), "volumes": set()}
    for name, service in services.items():
        for other, how in service.get("depends_on", {}).items():
            if other not in services:
                yield f"{name} depends on {other}, which is not there"
            elif how["condition"] == "service_healthy" and "healthcheck" not in services[other]:
                yield f"{name} waits for the health of {other}, which has no check"
        if "healthcheck" not in service:
            yield f"{name} has no health check"
        used["secrets"] |= set(service.get("secrets", []))
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if not source.startswith(("/", ".", "~")):
                used["volumes"].add(source)
        for path in re.findall(r"/run/secrets/(\w+)", yaml.safe_dump(service)):
            if path not in service.get("secrets", []):
                yield f"{name} reads the secret {path}, which it is not given"
        tag = service["image"].rpartition(":")[2]
        if not re.match(r"\d+\.\d+", tag):
            yield f"{name}: image {service['image']} is not pinned"
        for key in service.get("environment", {}):
            if re.search(r"(PASSWORD|TOKEN)$", key):
                yield f"{name}: the secret {key} stands in its environment"
    for kind, names in used.items():
        defined = set(compose[kind])
        yield from (f"{kind}: {n} is not defined" for n in names - defined)
        yield from (f"{kind}: {n} is not used" for n in defined - names)


def _addresses(compose: dict[str, Any], lines: list[str]) -> Iterator[str]:
    """Host names in commands are services; MLflow answers to the name that the search uses."""
    services = compose["services"]
    joined = "\n".join(lines)
    hosts = set(re.findall(r"(?:https?://|@|--address=)([A-Za-z][\w-]*):\d+", joined))
    yield from (f"no service {host}" for host in hosts - {*services, "localhost"})
    yield from (
        f"no service {s}"
        for s in re.findall(r"compose\.yaml exec (\S+)", joined)
        if s not in services
    )
    tracking = re.search(r"--tracking-uri https?://(\S+)", joined)
    (server,) = (
        s["command"] for s in services.values() if "mlflow server" in str(s.get("command"))
    )
    allowed = re.search(r"--allowed-hosts (\S+)", server[-1])
    if not tracking or not allowed or tracking[1] not in allowed[1].split(","):
        yield f"MLflow does not allow the host of {tracking and tracking[0]}"
    (search,) = calls("python -m resp_tune.search", lines)
    for name in ("head", "worker", "gpu-worker"):
        mounted = {v.rpartition(":")[2] for v in services[name]["volumes"]}
        for flag in ("--data", "--storage"):
            if search[search.index(flag) + 1] not in mounted:
                yield f"{name} does not mount the {flag} of the search"
    for name, service in services.items():
        command = service.get("command", "")
        if "ray" in str(command) and service["environment"].get("RAY_AUTH_MODE") != "token":
            yield f"{name} runs Ray without a token"


def _published(compose: dict[str, Any]) -> Iterator[str]:
    for name, service in compose["services"].items():
        for port in service.get("ports", []):
            if not str(port).startswith("127.0.0.1:"):
                yield f"{name} publishes {port} to everyone"


def test_compose_is_right() -> None:
    assert wrong(text("compose.yaml")) == []


@pytest.mark.parametrize(
    ("right", "broken", "said"),
    [
        ("depends_on:\n    head", "depend_on:\n    head", "depend_on"),
        ("replicas: 2", "replicas: [2]", "replicas"),
        ("retries: 10", "retry: 10", "retry"),
        ("{condition: service_healthy}", "{condition: healthy}", "depends_on"),
        ("head: {condition", "hat: {condition", "depends on hat"),
        ("secrets: [ray_token]", "secrets: []", "which it is not given"),
        ("/run/secrets/ray_token", "/run/secrets/token", "reads the secret token"),
        ("  ray_token:\n    env", "  token:\n    env", "ray_token is not defined"),
        ("  results:\n\n", "\n", "results is not defined"),
        ("    volumes:\n      - artifacts:/artifacts\n", "", "artifacts is not used"),
        ("healthcheck:\n      test: [CMD, pg", "x-check:\n      test: [CMD, pg", "has no check"),
        ("postgres:17.6-bookworm", "postgres:latest", "not pinned"),
        ("--address=head:6379", "--address=header:6379", "no service header"),
        ("mlflow@postgres:5432", "mlflow@db:5432", "no service db"),
        ("compose.yaml exec head", "compose.yaml exec ray-head", "no service ray-head"),
        ("--allowed-hosts mlflow:5000,", "--allowed-hosts ", "does not allow the host"),
        ("- results:/results", "- results:/result", "does not mount the --storage"),
        ('"127.0.0.1:8265:8265"', '"8265:8265"', "publishes 8265:8265 to everyone"),
        ("RAY_AUTH_MODE: token", "RAY_AUTH_MODE: disabled", "runs Ray without a token"),
        (
            "POSTGRES_PASSWORD_FILE: /run/secrets/postgres_password",
            "POSTGRES_PASSWORD: a",
            "stands",
        ),
    ],
)
def test_a_mistake_in_compose_is_found(right: str, broken: str, said: str) -> None:
    content = text("compose.yaml")
    assert right in content
    found = wrong(content.replace(right, broken))
    assert any(said in line for line in found), found


def test_the_secrets_are_made_by_the_first_command(tmp_path: Path) -> None:
    first = commands("compose.yaml", text("compose.yaml"))[0]
    (tmp_path / "scripts" / "cluster").mkdir(parents=True)
    subprocess.run(["bash", "-euc", first], cwd=tmp_path, check=True)
    made = tmp_path / "scripts" / "cluster" / ".env"
    assert made.stat().st_mode & 0o777 == 0o600
    values = dict(shlex.split(line)[0].split("=") for line in made.read_text().splitlines())
    wanted = {s["environment"] for s in yaml.safe_load(text("compose.yaml"))["secrets"].values()}
    assert set(values) == wanted
    assert all(re.fullmatch("[0-9a-f]{64}", value) for value in values.values())
