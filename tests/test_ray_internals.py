"""The private parts of Ray that `cluster/ray_internals.py` uses, one test for each.

`LIST_NODES` needs a running Ray and is tested in tests/test_local_ray.py.

If a test fails after an upgrade of Ray, its docstring says what depends on that part. Find the new
way in Ray's source, or keep the bound `ray<…` in pyproject.toml as it is.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import ray
from ray._private import ray_constants, services
from ray.air.execution._internal.actor_manager import RayActorManager
from ray.exceptions import OutOfMemoryError, RayActorError

from resp_tune.cluster import ray_internals


def test_options_of_init() -> None:
    """Without them this machine's address is guessed, and sockets go where all users may write.

    `ray.init` takes names that begin with `_` as keywords of its own or refuses them.
    """
    source = inspect.getsource(ray.init)
    for name in (ray_internals.NODE_ADDRESS, ray_internals.TEMP_FOLDER):
        assert f'"{name}"' in source


def test_the_switch_for_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it a private Ray listens on every interface: tests/test_local_ray.py."""
    assert ray_internals.ENABLE_CLUSTER in inspect.getsource(ray_constants)
    before = ray_constants.ENABLE_RAY_CLUSTER
    with ray_internals.loopback_only():
        assert services.get_node_ip_address() == "127.0.0.1"
    assert before == ray_constants.ENABLE_RAY_CLUSTER


def test_authentication_can_be_reloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it the second private Ray of a process would use the token of the first."""
    from ray._raylet import Config  # type: ignore[attr-defined]  # compiled, not in its stubs

    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 64)
    ray_internals.reload_authentication()
    assert "AUTH_MODE" in dir(Config) or hasattr(Config, "initialize")


def test_the_address_of_this_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """`--address auto` needs it."""
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.7:6379")
    assert ray_internals.address_of_this_node() == "10.0.0.7:6379"


def test_a_worker_ended_by_the_memory_monitor_is_a_lost_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without it Ray Tune would raise "unexpected exception", which ends the search."""
    received: list[Exception] = []

    def original(self: object, tracked_actor_task: object, exception: Exception) -> None:
        received.append(exception)

    monkeypatch.setattr(RayActorManager, "_actor_task_failed", original)
    ray_internals.treat_out_of_memory_as_lost_worker()
    ray_internals.treat_out_of_memory_as_lost_worker()
    manager: Any = RayActorManager.__new__(RayActorManager)
    manager._actor_task_failed(tracked_actor_task=None, exception=OutOfMemoryError("low"))
    manager._actor_task_failed(tracked_actor_task=None, exception=OSError("other"))
    assert [type(error) for error in received] == [RayActorError, OSError]
    assert str(received[0]) == "OutOfMemoryError: low"


def test_what_the_searcher_reads_of_a_trial() -> None:
    """`WorkerFailureCallback` counts the losses of a trial's workers by these attributes."""
    from ray.tune.experiment import Trial

    trial = Trial("x", stub=True)
    assert (trial.num_failures, trial.max_failures) == (0, 0)
    assert isinstance(Trial.error_file, property)
