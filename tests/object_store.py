"""An S3 server of our own with one bucket, behind a wire that a test can cut."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import pytest
from pyarrow.fs import S3FileSystem
from test_tracking import free_port
from wire import Wire

from resp_tune.storage.place import Place

BUCKET = "sounds"
ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "somebody",
    "AWS_SECRET_ACCESS_KEY": "her-secret-key",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@dataclass(frozen=True)
class ObjectStore:
    """moto's server, which holds everything in memory."""

    wire: Wire
    address: str = "127.0.0.1"

    @property
    def port(self) -> int:
        return self.wire.port

    @property
    def endpoint(self) -> str:
        return f"http://{self.address}:{self.port}"

    @property
    def uri(self) -> str:
        return f"s3://{BUCKET}/searches?endpoint_override={self.endpoint}"

    @property
    def place(self) -> Place:
        return Place(self.uri)

    def files(self, name: str) -> set[str]:
        return set((self.place / name).sizes())

    def copy_on(self, cache: Path, name: str) -> Path:
        """The folder of a search on the machine that has this cache folder."""
        return cache / "searches" / self.place.copy.name / name


@pytest.fixture(scope="module")
def store() -> Iterator[ObjectStore]:
    """A store that this process has the keys of."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        with object_store() as served:
            yield served


@contextmanager
def object_store(address: str = "127.0.0.1", **environment: str) -> Iterator[ObjectStore]:
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )
    try:
        deadline = time.monotonic() + 120
        while not _answers(port):
            assert process.poll() is None, "moto's server ended"
            assert time.monotonic() < deadline, "moto's server does not answer"
            time.sleep(0.1)
        store = ObjectStore(Wire(free_port(), port, address), address)
        client = S3FileSystem(endpoint_override=store.endpoint, allow_bucket_creation=True)
        client.create_dir(BUCKET)
        yield store
    finally:
        process.kill()
        process.wait()


def _answers(port: int) -> bool:
    try:
        connection = HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/moto-api/data.json")
        return connection.getresponse().status == 200
    except OSError:
        return False
