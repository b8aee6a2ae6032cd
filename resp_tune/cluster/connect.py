"""A Ray cluster that others have started, joined for one search and left as it was.

with joined(settled("auto")) as cluster:
    print(cluster.nodes)
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psutil

from resp_tune.cluster import ray_internals
from resp_tune.cluster.ray_thread import on_its_own_thread
from resp_tune.cluster.resources import LOGICAL_GPUS, Machine
from resp_tune.errors import UserError

log = logging.getLogger(__name__)

LOCAL, AUTO = "local", "auto"
JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray's job API in what it starts
CONNECT_SECONDS = 5.0
KNOCK_SECONDS = 15.0

# Asked by a process of its own: Ray repeats a refused question for 20 s, an unanswered one for
# longer, and writes to our stderr meanwhile.
_KNOCK = """
import json, sys
from ray._raylet import GcsClient
nodes = GcsClient(address=sys.argv[1]).get_all_node_info().values()
print(json.dumps([n.node_manager_address for n in nodes if n.state == 0]))
"""


@dataclass(frozen=True)
class Node:
    """A machine of a cluster. `machine` is what Ray may hand out there.

    `gpu_type` is Ray's name for its GPUs (`T4`), or the node's address when Ray has none.
    """

    id: str
    host: str
    address: str
    machine: Machine
    gpu_type: str

    def __str__(self) -> str:
        return f"{self.host} ({self.address})"


@dataclass(frozen=True)
class Cluster:
    """A cluster as it was when it was joined; nodes may come and go: see `live_nodes`."""

    address: str
    nodes: tuple[Node, ...]

    @property
    def machines(self) -> tuple[Machine, ...]:
        """What trials may use."""
        return tuple(node.machine for node in self.nodes)

    @property
    def gpus(self) -> int:
        """GPUs of all nodes, logical ones among them."""
        return sum(machine.gpus for machine in self.machines)

    def __str__(self) -> str:
        return f"the cluster at {self.address}"


def settled(address: str) -> str:
    """`address` as HOST:PORT; of `auto`, the cluster that this machine belongs to.

    `UserError` where it has another form, or this machine belongs to none. Reaches for nothing.
    """
    found = address
    if address == AUTO:
        from ray._private.services import canonicalize_bootstrap_address

        found = canonicalize_bootstrap_address(AUTO) or ""
        if not found:
            raise UserError(
                "--address auto: this machine belongs to no Ray cluster that it knows of: give "
                "HOST:PORT, or start one with 'ray start --head'"
            )
    host, colon, port = found.rpartition(":")
    if found.startswith("ray://"):
        raise UserError(
            f"--address {address}: Ray Client is not supported: run the command on a node of the "
            "cluster with --address auto, or hand it over with 'ray job submit'"
        )
    if not (host and colon and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise UserError(
            f"--address '{found}' is not an address: give local, auto or HOST:PORT, as "
            "'ray start' printed it"
        )
    return found


@contextlib.contextmanager
def joined(address: str) -> Iterator[Cluster]:
    """The cluster at `address` (HOST:PORT), left at the end.

    `UserError` where nothing answers there, what answers is no Ray or refuses this token, this
    machine is none of its nodes, or they run other versions of Ray or Python.
    """
    _connect(address)
    own = _own_address(address, _knock(address))
    ray_internals.apply()
    import ray

    options: dict[str, Any] = {
        "address": address,
        # Ray would guess, and where it guesses wrong take the head for this machine.
        "_node_ip_address": own,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "runtime_env": {"env_vars": _for_workers()},
    }

    def begin() -> None:
        try:
            ray.init(**options)
        except (RuntimeError, ConnectionError, ValueError) as error:
            cause = " ".join(str(error).split())
            raise UserError(
                f"--address {address}: this machine cannot join that cluster: {cause[:400]}"
            ) from error

    with on_its_own_thread(begin, ray.shutdown):
        yield Cluster(address, live_nodes())


def _for_workers() -> dict[str, str]:
    """What trials must find in their environment, but for what a Ray job gives them already."""
    job = json.loads(os.environ.get(JOB, "{}")).get("runtime_env", {}).get("env_vars", {})
    names = (LOGICAL_GPUS, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO")
    return {name: os.environ[name] for name in names if name in os.environ and name not in job}


def await_gpus(cluster: Cluster, wanted: int | None, seconds: float | None) -> Cluster:
    """The cluster, once it has `wanted` GPUs (None: whatever it has).

    Waits for them up to `seconds`, and asks the cluster's autoscaler for them where it has one;
    `UserError` where it has too few and nobody waits, or it still has too few then.
    """
    if wanted is None or cluster.gpus >= wanted:
        return cluster
    too_few = f"--gpus {wanted}: {cluster} has {cluster.gpus or 'no'} GPU{'s' * (cluster.gpus > 1)}"
    if seconds is None:
        raise UserError(
            f"{too_few}: give --gpus {cluster.gpus}, or wait for more with --wait-for-gpus 10m"
        )
    from ray.autoscaler.sdk import request_resources

    log.info(f"{cluster} has {cluster.gpus or 'no'} GPUs: waiting {seconds:g} s for {wanted}")
    deadline = time.monotonic() + seconds
    request_resources(bundles=[{"GPU": 1}] * wanted)
    try:
        while cluster.gpus < wanted:
            if time.monotonic() > deadline:
                raise UserError(
                    f"{too_few}, {seconds:g} s later: give --gpus {cluster.gpus}, or wait longer"
                )
            time.sleep(1.0)
            cluster = Cluster(cluster.address, live_nodes())
    finally:
        request_resources(bundles=[])  # from now on the trials themselves ask
    return cluster


def live_nodes() -> tuple[Node, ...]:
    """The living nodes of the cluster that this process has joined, by address."""
    import ray

    nodes = [
        Node(
            id=found["NodeID"],
            host=found["NodeManagerHostname"],
            address=found["NodeManagerAddress"],
            machine=_machine(found["Resources"]),
            gpu_type=_gpu_type(found["Resources"]) or found["NodeManagerAddress"],
        )
        for found in ray.nodes()  # type: ignore[no-untyped-call]  # Ray has no annotation here
        if found["Alive"]
    ]
    return tuple(sorted(nodes, key=lambda node: (node.address, node.id)))


def _gpu_type(resources: dict[str, float]) -> str:
    prefix = "accelerator_type:"
    return min((r.removeprefix(prefix) for r in resources if r.startswith(prefix)), default="")


def _machine(resources: dict[str, float]) -> Machine:
    return Machine(
        cpus=int(resources.get("CPU", 0)),
        gpus=int(resources.get("GPU", 0)),
        memory=int(resources.get("memory", 0)),
    )


def _connect(address: str) -> None:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS):
            pass
    except (OSError, UnicodeError) as error:
        cause = getattr(error, "strerror", None) or error
        raise UserError(
            f"--address {address}: nothing answers there ({cause}): start the cluster with "
            "'ray start --head', or give the address that it printed"
        ) from error


def _knock(address: str) -> list[str]:
    """The addresses of the living nodes."""
    command = [sys.executable, "-c", _KNOCK, address]
    try:
        done = subprocess.run(  # noqa: S603  # this Python and our own code
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=KNOCK_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            f"--address {address}: what answers there is no Ray cluster, or a hanging one: give "
            "the address that 'ray start' printed"
        ) from None
    if done.returncode == 0:
        addresses: list[str] = json.loads(done.stdout.splitlines()[-1])
        return addresses
    if "uthenticat" in done.stderr:
        what = "refuses the token given" if "InvalidAuthToken" in done.stderr else "wants a token"
        raise UserError(
            f"--address {address}: the cluster {what}: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN "
            "to the cluster's token or RAY_AUTH_TOKEN_PATH to its file"
        )
    cause = " ".join(done.stderr.strip().splitlines()[-1:])[:300]
    raise UserError(f"--address {address}: no Ray cluster can be asked there: {cause}")


def _own_address(address: str, nodes: Sequence[str]) -> str:
    """That of `nodes` which is this machine."""
    own = {ip.address for ips in psutil.net_if_addrs().values() for ip in ips}
    found = next((node for node in nodes if node in own), None)
    if found is None:
        raise UserError(
            f"--address {address}: this machine is none of that cluster's nodes "
            f"({', '.join(nodes[:4])}{', …' * (len(nodes) > 4)}): run the command on one of them, "
            f"hand it over with 'ray job submit', or make it one: ray start --address={address}"
        )
    return found
