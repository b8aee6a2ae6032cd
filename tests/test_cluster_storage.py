"""A search on a cluster whose hosts share nothing but an object store and a tracking server.

Each of the two is on a host of its own; MLflow keeps its tables in a PostgreSQL beside it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient
from optuna.trial import TrialState
from support.gates import allow, epochs_done, gated
from support.hosts import Host, Network, why_not
from support.mlflow_stores import mlflow_server
from support.object_store import ENVIRONMENT, ObjectStore, object_store
from support.ports import free_port
from support.postgres import PASSWORD, postgres, why_none
from support.searches import command, study, summary, wait_for

UNAVAILABLE = why_not() or why_none()
pytestmark = [
    pytest.mark.thorough,
    pytest.mark.xdist_group("cluster"),
    pytest.mark.timeout(900),
    pytest.mark.skipif(UNAVAILABLE is not None, reason=UNAVAILABLE or ""),
]
EPOCHS = 10


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the test itself and the data need; the search keeps nothing there."""
    folder = tmp_path_factory.mktemp("shared")
    made = command("synth", str(folder / "set"), "--recordings", "60", "--seconds", "2")
    assert made.code == 0, made.err
    return folder


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Iterator[Network]:
    """A head that runs no trials, and two workers with a logical GPU each."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**ENVIRONMENT, **gated(shared)}.items():
            patch.setenv(name, value)
        with Network(tmp_path_factory.mktemp("net"), 5) as network:
            network.head.head()
            for host in network.hosts[1:3]:
                host.worker(gpus=1)
            yield network


@pytest.fixture(scope="module")
def store(net: Network) -> Iterator[ObjectStore]:
    host = net.hosts[3]
    with object_store(host.address, host.command()) as served:
        yield served


@pytest.fixture
def tracking(net: Network, tmp_path: Path) -> Iterator[str]:
    """The address of an MLflow server on PostgreSQL."""
    host, here = net.hosts[4], tmp_path / "tracker"
    here.mkdir()
    with (
        postgres(free_port(), host.address, *host.command()) as database,
        mlflow_server(here, free_port(), host.address, host.command(), database.uri) as server,
    ):
        yield server
        assert database.rows("runs") > 0, "that is where it is kept"


def trials_on(store: ObjectStore, host: Host, name: str) -> set[str]:
    """Trials that have a checkpoint in the cache of this host alone."""
    copy = store.copy_on(host.folder / "cache", name)
    return {path.parent.name for path in copy.glob("trials/*/checkpoint.pt")}


def test_a_trial_moves_to_another_host_by_way_of_the_store(
    net: Network, store: ObjectStore, tracking: str, shared: Path, tmp_path: Path
) -> None:
    head, kept, lost = net.hosts[:3]
    line = [
        sys.executable, "-m", "resp_tune.search", "--address", net.address,
        "--storage", store.uri, "--data", str(shared / "set"), "--name", "moves",
        "--tracking-uri", tracking,
        "--space", "search_spaces/smoke.yaml", "--scheduler", "none",
        "--gpus", "2", "--trials", "2", "--epochs", str(EPOCHS),
    ]  # fmt: skip
    allow(shared, of_each=4)
    running = head.start(*line, out=tmp_path / "out")
    wait_for(lambda: len(epochs_done(shared)) >= 8, 400)
    sent = {f"trials/{n}/checkpoint.pt" for n in range(2)}
    wait_for(lambda: sent <= store.files("moves"))
    (moved,) = trials_on(store, lost, "moves")
    assert trials_on(store, kept, "moves") == {"01".replace(moved, "")}
    assert trials_on(store, head, "moves") == set()
    lost.kill()
    allow(shared)
    said = (tmp_path / "out").read_text
    assert running.wait(timeout=500) == 0, said()
    # Of a host that ends process by process, Ray may notice the worker first.
    on = "was lost; it resumes from its checkpoint"
    assert re.search(rf"trial {moved}: its (node|worker) {on}", said())
    assert "Traceback" not in said()
    assert "trained again" not in said(), "the winner's checkpoint was fetched"
    assert epochs_done(shared).count(f"{moved} 1") == 1, "it went on from its checkpoint"
    storage = store.copy_on(head.folder / "cache", "")
    told = study(storage, "moves").get_trials()
    assert [t.state for t in told] == [TrialState.COMPLETE] * 2
    assert [sorted(t.intermediate_values) for t in told] == [list(range(1, EPOCHS + 1))] * 2
    winner = str(summary(storage, "moves")["winner"]["number"])
    assert trials_on(store, head, "moves") == {winner}
    assert trials_on(store, kept, "moves") == {"0", "1"}
    assert sent | {"summary.json", "study.db"} <= store.files("moves")
    assert PASSWORD not in said()
    client = MlflowClient(tracking)
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert {run.info.status for run in runs} == {"FINISHED"}
    own = [run for run in runs if run.data.tags["resp_tune.kind"] == "trial"]
    assert len(own) == 2
    for run in own:
        steps = [m.step for m in client.get_metric_history(run.info.run_id, "val_loss")]
        assert sorted(steps) == list(range(1, EPOCHS + 1))
