"""Connect to a Ray cluster that is already running, and leave it running.

with connect(resolve_address("auto")) as cluster:
    print(cluster.nodes)
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import psutil

from resp_tune.cluster import ray_internals
from resp_tune.cluster.ray_thread import run_in_thread
from resp_tune.cluster.resources import LOGICAL_GPUS, Machine, TrialResources, trial_capacity
from resp_tune.errors import UserError, named_in_errors

log = logging.getLogger(__name__)

LOCAL, AUTO = "local", "auto"
VARIABLE = "RAY_ADDRESS"  # what `auto` means, if it is set
JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # set by Ray's job API in what it starts
CONNECT_SECONDS = 5.0
LIST_SECONDS = 15.0
CACHED_SECONDS = 1.0
GPU_TYPE = "accelerator_type:"  # before a GPU's name in Ray's list of resources


@dataclass(frozen=True)
class Node:
    """A machine of a cluster. `machine` holds the resources that Ray may assign there.

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
    """A cluster and its nodes at the moment of connecting; `live_nodes` returns those of now."""

    address: str
    nodes: tuple[Node, ...]

    @property
    def machines(self) -> tuple[Machine, ...]:
        """Return the resources of all nodes."""
        return tuple(node.machine for node in self.nodes)

    @property
    def gpus(self) -> int:
        """Return the number of GPUs of all nodes, logical ones included."""
        return sum(machine.gpus for machine in self.machines)

    def __str__(self) -> str:
        return f"the cluster at {self.address}"


def resolve_address(address: str) -> str:
    """Return `address` as HOST:PORT; for `auto`, that of the cluster this machine belongs to.

    Opens no connection. Raises `UserError` if the address has another form, or there is no such
    cluster.
    """
    if address != AUTO:
        return _check_form(address)
    with variable_in_errors(address):
        if (given := os.environ.get(VARIABLE)) and given not in (AUTO, LOCAL):
            _check_form(given)
        resolved = ray_internals.address_of_this_node()
        if not resolved:
            raise UserError(
                "--address auto: this machine belongs to no Ray cluster that it knows of: give "
                "HOST:PORT, or start one with 'ray start --head'"
            )
        return _check_form(resolved)


def variable_in_errors(address: str) -> AbstractContextManager[None]:
    """Name `$RAY_ADDRESS` in the errors raised inside if it is what `--address auto` means."""
    used = address == AUTO and os.environ.get(VARIABLE)
    return named_in_errors(VARIABLE if used else None)


def _check_form(resolved: str) -> str:
    host, colon, port = resolved.rpartition(":")
    if resolved.startswith("ray://"):
        raise UserError(
            f"--address {resolved}: Ray Client is not supported: run the command on a node of the "
            "cluster with --address auto, or submit it with 'ray job submit'"
        )
    if not (host and colon and port.isascii() and port.isdigit() and 0 < int(port) < 65536):
        raise UserError(
            f"--address '{resolved}' is not an address: give local, auto or HOST:PORT, as "
            "'ray start' printed it"
        )
    return resolved


@contextlib.contextmanager
def connect(address: str) -> Iterator[Cluster]:
    """Connect to the cluster at `address` (HOST:PORT), and disconnect at the end.

    Raises `UserError` if nothing answers there, what answers is not Ray or refuses this token, this
    machine is none of its nodes, or they run other versions of Ray or Python.
    """
    _check_reachable(address)
    own = _own_address(address, _list_nodes(address))
    ray_internals.prepare()
    import ray

    options: dict[str, Any] = {
        "address": address,
        ray_internals.NODE_ADDRESS: own,
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "runtime_env": {"env_vars": _worker_env()},
    }

    def begin() -> None:
        try:
            ray.init(**options)
        except (RuntimeError, ConnectionError, ValueError) as error:
            cause = " ".join(str(error).split())
            raise UserError(
                f"--address {address}: this machine cannot connect to that cluster: {cause[:400]}"
            ) from error

    with run_in_thread(begin, ray.shutdown):
        yield Cluster(address, live_nodes())


def _worker_env() -> dict[str, str]:
    """Return the environment variables that trials need and that no Ray job has set for them."""
    job = json.loads(os.environ.get(JOB, "{}")).get("runtime_env", {}).get("env_vars", {})
    names = (LOGICAL_GPUS, "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO")
    return {name: os.environ[name] for name in names if name in os.environ and name not in job}


def wait_for_gpus(cluster: Cluster, wanted: int | None, seconds: float | None) -> Cluster:
    """Return the cluster once it has `wanted` GPUs; None means any number.

    Waits up to `seconds`, and requests the GPUs from the cluster's autoscaler if it has one.
    Raises `UserError` if there are too few then, or at once if `seconds` is None.
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
        request_resources(bundles=[])  # from now on the trials themselves request them
    return cluster


def live_nodes() -> tuple[Node, ...]:
    """Return the live nodes of the cluster that this process is connected to, by address."""
    import ray

    live = [_node(entry) for entry in ray.nodes() if entry["Alive"]]  # type: ignore[no-untyped-call]  # Ray's
    return tuple(sorted(live, key=lambda node: (node.address, node.id)))


def _node(entry: dict[str, Any]) -> Node:
    resources, address = entry["Resources"], entry["NodeManagerAddress"]
    gpu_types = [r.removeprefix(GPU_TYPE) for r in resources if r.startswith(GPU_TYPE)]
    return Node(
        id=entry["NodeID"],
        host=entry["NodeManagerHostname"],
        address=address,
        machine=Machine(
            cpus=int(resources.get("CPU", 0)),
            gpus=int(resources.get("GPU", 0)),
            memory=int(resources.get("memory", 0)),
        ),
        gpu_type=min(gpu_types, default=address),
    )


def cluster_capacity(
    slots: TrialResources, limit: int | None, nodes: Callable[[], Sequence[Node]] = live_nodes
) -> Callable[[], int]:
    """Return a function that counts how many trials may run now, `limit` at most.

    It looks at the live nodes at most once a second, however often Ray Tune calls it.
    """
    capacity, counted_at = 0, -CACHED_SECONDS

    def count() -> int:
        nonlocal capacity, counted_at
        if (now := time.monotonic()) - counted_at >= CACHED_SECONDS:
            capacity = trial_capacity(slots, [node.machine for node in nodes()])
            counted_at = now
        return capacity if limit is None else min(capacity, limit)

    return count


def _check_reachable(address: str) -> None:
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


def _list_nodes(address: str) -> list[str]:
    """Return the addresses of the live nodes."""
    command = [sys.executable, "-c", ray_internals.LIST_NODES, address]
    try:
        done = subprocess.run(  # noqa: S603  # this Python and our own code
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIST_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            f"--address {address}: what answers there is not a Ray cluster, or hangs: give "
            "the address that 'ray start' printed"
        ) from None
    if done.returncode == 0:
        addresses: list[str] = json.loads(done.stdout.splitlines()[-1])
        return addresses
    if "uthenticat" in done.stderr:
        what = "refuses this token" if "InvalidAuthToken" in done.stderr else "requires a token"
        raise UserError(
            f"--address {address}: the cluster {what}: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN "
            "to the cluster's token or RAY_AUTH_TOKEN_PATH to its file"
        )
    cause = " ".join(done.stderr.strip().splitlines()[-1:])[:300]
    raise UserError(f"--address {address}: no Ray cluster answers there: {cause}")


def _own_address(address: str, nodes: Sequence[str]) -> str:
    """Return the address in `nodes` that is this machine's."""
    own = {ip.address for ips in psutil.net_if_addrs().values() for ip in ips}
    match = next((node for node in nodes if node in own), None)
    if match is None:
        raise UserError(
            f"--address {address}: this machine is none of that cluster's nodes "
            f"({', '.join(nodes[:4])}{', …' * (len(nodes) > 4)}): run the command on one of them, "
            f"submit it with 'ray job submit', or add this machine: "
            f"{shlex.join(['ray', 'start', f'--address={address}'])}"
        )
    return match
