"""Several hosts on this machine: network namespaces on a bridge, each with a Ray of its own.

Needs root and iproute2. Processes are ended by their namespace, never by `ray stop`, which would
end every Ray on the machine.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

TOKEN = secrets.token_hex(32)
AUTH = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}
# A lost node is noticed in seconds, not after a minute.
HASTY = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
}
GCS_PORT, DASHBOARD_PORT = 6379, 8265


def why_not() -> str | None:
    """Why there can be no hosts here; None where there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need root on Linux"
    if shutil.which("ip") is None:
        return "network namespaces need iproute2's `ip`"
    name = f"rt{secrets.token_hex(3)}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    if tried.returncode != 0:
        return f"network namespaces are not permitted here: {tried.stderr.decode().strip()}"
    ip("netns", "delete", name)
    return None


def ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True, capture_output=True)


@dataclass
class Host:
    """A namespace with an address. `cover`: folders that this host cannot see."""

    net: Network
    number: int
    cover: Sequence[Path] = ()
    env: dict[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.net.name}h{self.number}"

    @property
    def address(self) -> str:
        return f"{self.net.prefix}.{self.number}"

    @property
    def folder(self) -> Path:
        """For its cache; Ray's own files go to a shorter path."""
        return self.net.folder / f"h{self.number}"

    @property
    def rays(self) -> Path:
        return Path(f"/tmp/{self.name}")  # noqa: S108  # sockets need a short path

    def command(self, *args: str) -> list[str]:
        """`args` as run on this host."""
        inside = ["ip", "netns", "exec", self.name]
        if not self.cover:
            return [*inside, *args]
        mounts = " && ".join(f"mount -t tmpfs tmpfs '{path}'" for path in self.cover)
        return [*inside, "unshare", "-m", "sh", "-c", f'{mounts} && exec "$@"', "sh", *args]

    def environment(self, **more: str) -> dict[str, str]:
        own = {"RESP_TUNE_CACHE": str(self.folder / "cache"), "RESP_TUNE_LOGICAL_GPUS": "1"}
        return {**os.environ, **AUTH, **HASTY, "RAY_USAGE_STATS_ENABLED": "0", **own, **self.env,
                **more}  # fmt: skip

    def run(self, *args: str, timeout: float = 240, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*args), env=self.environment(**env), capture_output=True, text=True,
            stdin=subprocess.DEVNULL, timeout=timeout, check=False,
        )  # fmt: skip

    def start(self, *args: str, out: Path, **env: str) -> subprocess.Popen[bytes]:
        with out.open("ab") as file:
            return subprocess.Popen(
                self.command(*args), env=self.environment(**env), stdout=file, stderr=file,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    def ray(self, *args: str, **env: str) -> None:
        done = self.run(sys.executable, "-m", "ray.scripts.scripts", "start",
                        f"--node-ip-address={self.address}", *args, **env)  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def head(self, *args: str, jobs: bool = False, **env: str) -> None:
        """A second time as well: Ray asks all processes of the machine whether a head runs.

        `jobs`: with the job API, which is a dozen processes more.
        """
        (self.rays / "ray_current_cluster").unlink(missing_ok=True)
        self.ray("--head", f"--port={GCS_PORT}", f"--temp-dir={self.rays}", "--num-cpus=0",
                 f"--dashboard-host={self.address}", f"--include-dashboard={str(jobs).lower()}",
                 *args, **env)  # fmt: skip

    def worker(self, *args: str, cpus: int = 1, gpus: int = 2) -> None:
        self.ray(f"--address={self.net.head.address}:{GCS_PORT}", f"--num-cpus={cpus}",
                 f"--num-gpus={gpus}", *args)  # fmt: skip

    def pids(self) -> list[int]:
        found = subprocess.run(
            ["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True
        )
        return [int(pid) for pid in found.stdout.split()]

    def kill(self) -> None:
        """Everything that runs there, as a power cut would."""
        while pids := self.pids():
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)

    def link(self, state: str) -> None:
        """`down`: cut off from the network, nothing closed; `up`: back."""
        ip("link", "set", f"{self.net.name}v{self.number}", state)


class Network:
    """A bridge with `count` hosts; the first is the head of the cluster."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self.name = f"rt{secrets.token_hex(2)}"
        self.prefix = f"10.{secrets.randbelow(100) + 100}.{secrets.randbelow(200) + 20}"
        self.hosts = [Host(self, number) for number in range(1, count + 1)]

    @property
    def head(self) -> Host:
        return self.hosts[0]

    @property
    def address(self) -> str:
        """Of the cluster."""
        return f"{self.head.address}:{GCS_PORT}"

    def __enter__(self) -> Network:
        ip("link", "add", self.name, "type", "bridge")
        ip("addr", "add", f"{self.prefix}.254/24", "dev", self.name)
        ip("link", "set", self.name, "up")
        for host in self.hosts:
            outside = f"{self.name}v{host.number}"
            ip("netns", "add", host.name)
            ip("link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", host.name)
            ip("link", "set", outside, "master", self.name, "up")
            inside = ("netns", "exec", host.name, "ip")
            ip(*inside, "addr", "add", f"{host.address}/24", "dev", "eth0")
            ip(*inside, "link", "set", "eth0", "up")
            ip(*inside, "link", "set", "lo", "up")
            host.folder.mkdir(parents=True)
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.hosts:
            host.kill()
            ip("netns", "delete", host.name)  # its end of the cable goes with it
            shutil.rmtree(host.rays, ignore_errors=True)
        ip("link", "delete", self.name)
