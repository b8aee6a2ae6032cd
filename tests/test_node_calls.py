"""Calls on the nodes of a cluster, here of a private Ray with one node."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.exceptions import GetTimeoutError

from resp_tune.cluster import node_setup
from resp_tune.cluster.connect import Node, live_nodes
from resp_tune.cluster.local_ray import local_ray
from resp_tune.cluster.node_calls import call_on_nodes
from resp_tune.cluster.node_probe import ProbeRequest, ProbeResult, probe_nodes, versions
from resp_tune.cluster.node_setup import common_device
from resp_tune.cluster.resources import Machine
from resp_tune.errors import RunError

# Clusters make the same calls in the slow tests.
pytestmark = pytest.mark.thorough


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    with local_ray(Machine(2, 0, 10**9), 1):
        (only,) = live_nodes()
        yield only


def test_results_and_exceptions_by_node(node: Node) -> None:
    assert call_on_nodes(divmod, {node.id: (7, 2)}) == {node.id: (3, 1)}
    failed = call_on_nodes(divmod, {node.id: (7, 0)}, cpus=1.0, gpus=0.5)
    assert isinstance(failed[node.id], ZeroDivisionError)


def test_a_call_that_takes_too_long(node: Node) -> None:
    import time

    late = call_on_nodes(time.sleep, {node.id: (60,)}, timeout=0.5)
    assert isinstance(late[node.id], GetTimeoutError)


def test_a_node_that_cannot_be_prepared_is_one_line(node: Node) -> None:
    with pytest.raises(RunError, match="a node could not be prepared: "):
        node_setup._call(divmod, {node.id: (7, 0)})
    assert common_device([node], "cpu", 0.0).type == "cpu"


def test_a_node_is_probed(node: Node, tmp_path: Path) -> None:
    token, recording = tmp_path / "driver", tmp_path / "a.wav"
    token.write_text("secret")
    recording.write_bytes(b"1234")
    other = {recording: hashlib.sha256(b"5678").hexdigest()}
    good = ProbeRequest(token, {recording: 4}, {}, tracking=("127.0.0.1", 1))
    (result,) = probe_nodes([node], good).values()
    assert isinstance(result, ProbeResult)
    assert (result.storage, result.data) == (None, None)
    assert "127.0.0.1:1 not reached" in str(result.tracking)
    assert result.versions == versions()
    assert (tmp_path / node.id).read_text() == hashlib.sha256(b"secret").hexdigest()
    bad = ProbeRequest(tmp_path / "missing", {recording: 4}, other, tracking=None)
    (result,) = probe_nodes([node], bad).values()
    assert isinstance(result, ProbeResult)
    assert "is not the driver's folder" in str(result.storage)
    assert result.data == "a.wav is another file there"
    assert result.tracking is None
