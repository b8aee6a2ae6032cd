"""An S3 server of our own with one bucket."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import pytest

from resp_tune.storage.object_store import ObjectPath
from support.ports import free_port
from support.wire import Wire

BUCKET = "sounds"
SERVER = Path(__file__).with_name("s3_server.py")
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "somebody",
    "AWS_SECRET_ACCESS_KEY": "her-secret-key",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@dataclass(frozen=True)
class ObjectStore:
    """moto's server, which holds everything in memory."""

    address: str
    port: int

    @property
    def endpoint(self) -> str:
        return f"http://{self.address}:{self.port}"

    @property
    def uri(self) -> str:
        return f"s3://{BUCKET}/searches?endpoint_override={self.endpoint}"

    @property
    def prefix_path(self) -> ObjectPath:
        return ObjectPath(self.uri)

    def files(self, name: str) -> set[str]:
        return set((self.prefix_path / name).list_sizes())

    def copy_on(self, cache: Path, name: str) -> Path:
        """The folder of a search on the machine that has this cache folder."""
        return cache / "searches" / self.prefix_path.local_copy.name / name


@dataclass(frozen=True)
class WiredStore(ObjectStore):
    """One behind a wire that a test can cut."""

    wire: Wire


@pytest.fixture(scope="module")
def store() -> Iterator[WiredStore]:
    """A store that this process has the keys of."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        with object_store() as served:
            wire = Wire(free_port(), served.port)
            yield WiredStore("127.0.0.1", wire.port, wire)


@contextmanager
def object_store(
    address: str = "127.0.0.1", inside: Sequence[str] = (), **environment: str
) -> Iterator[ObjectStore]:
    """A store with an empty bucket. `inside`: what its command is put behind."""
    port = free_port()
    process = subprocess.Popen(
        [*inside, sys.executable, str(SERVER), "-H", address, "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )
    try:
        deadline = time.monotonic() + 120
        while not _answers(address, port):
            assert process.poll() is None, "moto's server ended"
            assert time.monotonic() < deadline, "moto's server does not answer"
            time.sleep(0.1)
        store = ObjectStore(address, port)
        assert request("PUT", address, port, f"/{BUCKET}") == 200
        yield store
    finally:
        process.kill()
        process.wait()


def _answers(address: str, port: int) -> bool:
    try:
        return request("GET", address, port, "/moto-api/data.json") == 200
    except OSError:
        return False


def request(method: str, address: str, port: int, path: str) -> int:
    """The status of an answer to a request without a body."""
    connection = HTTPConnection(address, port, timeout=30)
    connection.request(method, path)
    return connection.getresponse().status
